# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=True
"""The C core, one Python method for each of its passes.

Arrays are read through NumPy's C API: the buffer protocol has no letter for bfloat16, and a small call would feel the
time that it takes. The core trusts its caller, so this module checks what would make it read or write out of bounds:
shapes that differ, formats that it does not know, memory that is not writeable.
"""

from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
cimport cython
cimport numpy as cnp
from libc.stdint cimport int64_t
from libc.string cimport memset

cnp.import_array()

cdef extern from "refbn.h":
    enum:
        REFBN_MAX_NDIM
        REFBN_STATE_SIZE
        REFBN_F16
        REFBN_BF16
        REFBN_F32
        REFBN_F64

    ctypedef struct refbn_geometry:
        Py_ssize_t groups, count
        int ndim
        Py_ssize_t extent[REFBN_MAX_NDIM]

    ctypedef struct refbn_tensor:
        char *data
        int format
        Py_ssize_t group_stride
        Py_ssize_t stride[REFBN_MAX_NDIM]

    ctypedef struct refbn_vector:
        char *data
        int format
        Py_ssize_t stride

    ctypedef struct refbn_call:
        int pass_ "pass"
        refbn_geometry geometry
        double *state
        double eps
        refbn_tensor x, dy, x_dot, y, dx
        refbn_vector gamma, beta, mean, var, invstd
        refbn_vector gamma_dot, beta_dot, mean_dot, var_dot
        refbn_vector dgamma, dbeta, dmean, dvar
        double momentum[2]
        double weight_new[3]
        double weight_old[3]
        int weighs_new, unbiased
        void *scratch
        int64_t *decided

    enum:
        REFBN_FORWARD
        REFBN_BACKWARD
        REFBN_JVP
        REFBN_DOUBLE_BACKWARD
        REFBN_HVP
        REFBN_RUNNING_UPDATE
        REFBN_INFERENCE
        REFBN_INFERENCE_BACKWARD
        REFBN_INFERENCE_JVP
        REFBN_INFERENCE_DOUBLE_BACKWARD
        REFBN_INFERENCE_HVP

    ctypedef struct refbn_kernels:
        const char *name
        void (*prepare)(refbn_call *) noexcept nogil
        size_t (*scratch_size)(const refbn_call *, int) noexcept nogil
        void (*run)(refbn_call *, refbn_team *) noexcept nogil

    const refbn_kernels *refbn_kernels_at(int index) noexcept nogil

cdef extern from "threads.h":
    ctypedef struct refbn_team:
        int rank, size
    void refbn_parallel(int, void (*)(refbn_team *, void *) noexcept nogil, void *) noexcept nogil

cdef extern from "environment.h":
    int refbn_environment_available() noexcept nogil


@cython.freelist(8)
cdef class _Call:
    """One call, described to the core. It borrows its arrays: whoever makes the call holds them."""

    cdef refbn_call call

    def __cinit__(self):
        memset(&self.call, 0, sizeof(refbn_call))

    cdef cnp.ndarray read(self, object array, bint writable):
        """Return what is an array that the core can read (or write), or raise."""
        if not cnp.PyArray_Check(array):
            raise TypeError(f"an array, not a {type(array).__name__}")
        cdef cnp.ndarray checked = <cnp.ndarray>array
        if not cnp.PyArray_ISNOTSWAPPED(checked):
            raise ValueError("an array is in native byte order")
        if writable and not cnp.PyArray_ISWRITEABLE(checked):
            raise ValueError("an output is writeable")
        return checked

    cdef int format(self, cnp.ndarray array) except -1:
        cdef int number = cnp.PyArray_TYPE(array)
        if number == cnp.NPY_FLOAT32:
            return REFBN_F32
        if number == cnp.NPY_FLOAT64:
            return REFBN_F64
        if number == cnp.NPY_FLOAT16:
            return REFBN_F16
        if cnp.PyTypeNum_ISUSERDEF(number) and cnp.PyArray_ITEMSIZE(array) == 2:
            return REFBN_BF16  # by ml_dtypes; its number is given at run time
        raise TypeError(f"float16, bfloat16, float32 or float64, not {array.dtype}")

    cdef int tensor(self, refbn_tensor *tensor, object given, bint writable=False) except -1:
        cdef cnp.ndarray array = self.read(given, writable)
        cdef int ndim = cnp.PyArray_NDIM(array)
        cdef cnp.npy_intp *shape = cnp.PyArray_DIMS(array)
        cdef cnp.npy_intp *strides = cnp.PyArray_STRIDES(array)
        cdef refbn_geometry *geometry = &self.call.geometry
        cdef int axis
        if geometry.ndim == 0:
            if not 2 <= ndim <= REFBN_MAX_NDIM:
                raise ValueError(f"a canonical tensor has 2 to {REFBN_MAX_NDIM} axes, not {ndim}")
            geometry.ndim = ndim - 1
            geometry.groups = shape[0]
            geometry.count = 1
            for axis in range(geometry.ndim):
                geometry.extent[axis] = shape[axis + 1]
                geometry.count *= shape[axis + 1]
        elif ndim != geometry.ndim + 1 or shape[0] != geometry.groups:
            raise ValueError("the tensors of a call have one shape")
        tensor.data = cnp.PyArray_BYTES(array)
        tensor.format = self.format(array)
        tensor.group_stride = strides[0]
        for axis in range(geometry.ndim):
            if shape[axis + 1] != geometry.extent[axis]:
                raise ValueError("the tensors of a call have one shape")
            tensor.stride[axis] = strides[axis + 1]
        return 0

    cdef int vector(self, refbn_vector *vector, object given, bint writable=False) except -1:
        cdef cnp.ndarray array = self.read(given, writable)
        if cnp.PyArray_NDIM(array) != 1 or cnp.PyArray_DIM(array, 0) != self.call.geometry.groups:
            raise ValueError("a vector has one number for each group")
        vector.data = cnp.PyArray_BYTES(array)
        vector.format = self.format(array)
        vector.stride = cnp.PyArray_STRIDE(array, 0)
        return 0

    cdef int direction(self, gamma, x_dot, mean_dot, var_dot, gamma_dot) except -1:
        self.vector(&self.call.gamma, gamma)
        self.tensor(&self.call.x_dot, x_dot)
        self.vector(&self.call.mean_dot, mean_dot)
        self.vector(&self.call.var_dot, var_dot)
        self.vector(&self.call.gamma_dot, gamma_dot)
        return 0

    cdef int state(self, object given, bint writable=False) except -1:
        cdef cnp.ndarray array = self.read(given, writable)
        if (cnp.PyArray_NDIM(array) != 2 or cnp.PyArray_DIM(array, 0) != self.call.geometry.groups
                or cnp.PyArray_DIM(array, 1) != REFBN_STATE_SIZE or cnp.PyArray_TYPE(array) != cnp.NPY_FLOAT64
                or not cnp.PyArray_ISCARRAY_RO(array)):
            raise ValueError("the state of another call")
        self.call.state = <double *>cnp.PyArray_DATA(array)
        return 0

    cdef int tally(self, object decided) except -1:
        """Count into an int64 array of shape (2, 4): elements and vector results, by rung."""
        cdef cnp.ndarray array
        if decided is not None:
            array = decided
            if (cnp.PyArray_TYPE(array) != cnp.NPY_INT64 or cnp.PyArray_SIZE(array) != 8
                    or not cnp.PyArray_ISCARRAY(array)):
                raise ValueError("counts of shape (2, 4)")
            self.call.decided = <int64_t *>cnp.PyArray_DATA(array)
        return 0

    cdef object new_state(self):
        cdef cnp.npy_intp shape[2]
        shape[0], shape[1] = self.call.geometry.groups, REFBN_STATE_SIZE
        state = cnp.PyArray_EMPTY(2, shape, cnp.NPY_FLOAT64, 0)
        self.state(state, True)
        return state


cdef struct _Run:
    const refbn_kernels *kernels
    refbn_call *call


cdef void _member(refbn_team *team, void *run) noexcept nogil:
    (<_Run *>run).kernels.run((<_Run *>run).call, team)


# Making threads costs some 70 us; a thread should have some 300 us to do.
cdef enum:
    _NUMBERS_PER_THREAD = 1 << 18


cdef class Kernels:
    """The passes, compiled for one instruction set. `builds` lists those that this machine can run."""

    cdef const refbn_kernels *kernels
    cdef readonly str name

    cdef int run(self, _Call c, int kind, int threads, object decided) except -1:
        cdef refbn_call *call = &c.call
        cdef _Run run = _Run(self.kernels, call)
        cdef Py_ssize_t numbers
        call.pass_ = kind
        c.tally(decided)
        with nogil:
            numbers = call.geometry.groups * call.geometry.count
            numbers *= 1 + (call.dy.data != NULL) + (call.x_dot.data != NULL)
            threads = min(threads, 1 + numbers // _NUMBERS_PER_THREAD)
            self.kernels.prepare(call)
            call.scratch = PyMem_RawMalloc(self.kernels.scratch_size(call, threads))
            if call.scratch != NULL:
                refbn_parallel(threads, _member, &run)
        if call.scratch == NULL:
            raise MemoryError
        PyMem_RawFree(call.scratch)
        return 0

    def forward(self, x, gamma, beta, double eps, y, mean, var, invstd, int threads=1, decided=None):
        """Run forward; return the state."""
        cdef _Call c = _Call()
        c.call.eps = eps
        c.tensor(&c.call.x, x)
        c.vector(&c.call.gamma, gamma)
        c.vector(&c.call.beta, beta)
        c.tensor(&c.call.y, y, True)
        c.vector(&c.call.mean, mean, True)
        c.vector(&c.call.var, var, True)
        c.vector(&c.call.invstd, invstd, True)
        state = c.new_state()
        self.run(c, REFBN_FORWARD, threads, decided)
        return state

    def backward(self, state, x, gamma, dy, dx, dgamma, dbeta, int threads=1, decided=None):
        """Run backward."""
        cdef _Call c = _Call()
        c.tensor(&c.call.x, x)
        c.state(state)
        c.vector(&c.call.gamma, gamma)
        c.tensor(&c.call.dy, dy)
        c.tensor(&c.call.dx, dx, True)
        c.vector(&c.call.dgamma, dgamma, True)
        c.vector(&c.call.dbeta, dbeta, True)
        self.run(c, REFBN_BACKWARD, threads, decided)

    def jvp(self, state, x, gamma, x_dot, gamma_dot, beta_dot, y_dot, int threads=1, decided=None):
        """Run jvp."""
        cdef _Call c = _Call()
        c.tensor(&c.call.x, x)
        c.state(state)
        c.vector(&c.call.gamma, gamma)
        c.tensor(&c.call.x_dot, x_dot)
        c.vector(&c.call.gamma_dot, gamma_dot)
        c.vector(&c.call.beta_dot, beta_dot)
        c.tensor(&c.call.y, y_dot, True)
        self.run(c, REFBN_JVP, threads, decided)

    def double_backward(self, state, x, gamma, dy, ddx, ddgamma, ddbeta, ddy, dx, dgamma, int threads=1, decided=None):
        """Run double_backward."""
        cdef _Call c = _Call()
        c.tensor(&c.call.x, x)
        c.state(state)
        c.vector(&c.call.gamma, gamma)
        c.tensor(&c.call.dy, dy)
        c.tensor(&c.call.x_dot, ddx)
        c.vector(&c.call.gamma_dot, ddgamma)
        c.vector(&c.call.beta_dot, ddbeta)
        c.tensor(&c.call.y, ddy, True)
        c.tensor(&c.call.dx, dx, True)
        c.vector(&c.call.dgamma, dgamma, True)
        self.run(c, REFBN_DOUBLE_BACKWARD, threads, decided)

    def hvp(self, state, x, gamma, dy, x_dot, gamma_dot, dx, dgamma, dbeta, int threads=1, decided=None):
        """Run hvp."""
        cdef _Call c = _Call()
        c.tensor(&c.call.x, x)
        c.state(state)
        c.vector(&c.call.gamma, gamma)
        c.tensor(&c.call.dy, dy)
        c.tensor(&c.call.x_dot, x_dot)
        c.vector(&c.call.gamma_dot, gamma_dot)
        c.tensor(&c.call.dx, dx, True)
        c.vector(&c.call.dgamma, dgamma, True)
        c.vector(&c.call.dbeta, dbeta, True)
        self.run(c, REFBN_HVP, threads, decided)

    def running_update(self, state, x, momentum, bint weighs_new, weight_new, weight_old, bint unbiased,
                       running_mean, running_var, out_mean, out_var, int threads=1, decided=None):
        """Blend; momentum is a pair numerator, denominator, each weight hi, lo and a bound of the error."""
        cdef _Call c = _Call()
        cdef int k
        c.tensor(&c.call.x, x)
        c.state(state)
        c.call.momentum[0], c.call.momentum[1] = momentum
        for k in range(3):
            c.call.weight_new[k] = weight_new[k]
            c.call.weight_old[k] = weight_old[k]
        c.call.weighs_new = weighs_new
        c.call.unbiased = unbiased
        c.vector(&c.call.mean, running_mean)
        c.vector(&c.call.var, running_var)
        c.vector(&c.call.dmean, out_mean, True)
        c.vector(&c.call.dvar, out_var, True)
        self.run(c, REFBN_RUNNING_UPDATE, threads, decided)

    def inference(self, x, mean, var, gamma, beta, double eps, y, invstd, int threads=1, decided=None):
        """Run inference; return the state."""
        cdef _Call c = _Call()
        c.call.eps = eps
        c.tensor(&c.call.x, x)
        c.vector(&c.call.mean, mean)
        c.vector(&c.call.var, var)
        c.vector(&c.call.gamma, gamma)
        c.vector(&c.call.beta, beta)
        c.tensor(&c.call.y, y, True)
        c.vector(&c.call.invstd, invstd, True)
        state = c.new_state()
        self.run(c, REFBN_INFERENCE, threads, decided)
        return state

    def inference_backward(self, state, x, gamma, dy, dx, dgamma, dbeta, dmean, dvar, int threads=1, decided=None):
        """Run inference_backward."""
        cdef _Call c = _Call()
        c.tensor(&c.call.x, x)
        c.state(state)
        c.vector(&c.call.gamma, gamma)
        c.tensor(&c.call.dy, dy)
        c.tensor(&c.call.dx, dx, True)
        c.vector(&c.call.dgamma, dgamma, True)
        c.vector(&c.call.dbeta, dbeta, True)
        c.vector(&c.call.dmean, dmean, True)
        c.vector(&c.call.dvar, dvar, True)
        self.run(c, REFBN_INFERENCE_BACKWARD, threads, decided)

    def inference_jvp(self, state, x, gamma, x_dot, mean_dot, var_dot, gamma_dot, beta_dot, y_dot, int threads=1, decided=None):
        """Run inference_jvp."""
        cdef _Call c = _Call()
        c.tensor(&c.call.x, x)
        c.state(state)
        c.direction(gamma, x_dot, mean_dot, var_dot, gamma_dot)
        c.vector(&c.call.beta_dot, beta_dot)
        c.tensor(&c.call.y, y_dot, True)
        self.run(c, REFBN_INFERENCE_JVP, threads, decided)

    def inference_double_backward(self, state, x, gamma, dy, ddx, ddmean, ddvar, ddgamma, ddbeta,
                                  ddy, dx, dgamma, dmean, dvar, int threads=1, decided=None):
        """Run inference_double_backward."""
        cdef _Call c = _Call()
        c.tensor(&c.call.x, x)
        c.state(state)
        c.direction(gamma, ddx, ddmean, ddvar, ddgamma)
        c.vector(&c.call.beta_dot, ddbeta)
        c.tensor(&c.call.dy, dy)
        c.tensor(&c.call.y, ddy, True)
        c.tensor(&c.call.dx, dx, True)
        c.vector(&c.call.dgamma, dgamma, True)
        c.vector(&c.call.dmean, dmean, True)
        c.vector(&c.call.dvar, dvar, True)
        self.run(c, REFBN_INFERENCE_DOUBLE_BACKWARD, threads, decided)

    def inference_hvp(self, state, x, gamma, dy, x_dot, mean_dot, var_dot, gamma_dot,
                      dx, dgamma, dbeta, dmean, dvar, int threads=1, decided=None):
        """Run inference_hvp."""
        cdef _Call c = _Call()
        c.tensor(&c.call.x, x)
        c.state(state)
        c.direction(gamma, x_dot, mean_dot, var_dot, gamma_dot)
        c.tensor(&c.call.dy, dy)
        c.tensor(&c.call.dx, dx, True)
        c.vector(&c.call.dgamma, dgamma, True)
        c.vector(&c.call.dbeta, dbeta, True)
        c.vector(&c.call.dmean, dmean, True)
        c.vector(&c.call.dvar, dvar, True)
        self.run(c, REFBN_INFERENCE_HVP, threads, decided)


cdef tuple _builds():
    cdef Kernels build
    found = []
    while refbn_kernels_at(len(found)) != NULL:
        build = Kernels.__new__(Kernels)
        build.kernels = refbn_kernels_at(len(found))
        build.name = build.kernels.name.decode()
        found.append(build)
    return tuple(found)


if not refbn_environment_available():
    raise ImportError("this machine's floating-point environment can neither be used nor changed")
builds = _builds()
