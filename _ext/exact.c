/* The exact rung, compiled once: integer code serves the kernels of every instruction set. See exact_rung.h.
 *
 * Test: pytest tests/backends/test_exact_rung.py
 */
#include "exact_passes.h"
