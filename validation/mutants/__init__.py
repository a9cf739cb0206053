"""Mutation score: every formula of the textbook made wrong in every small way, and who notices.

The textbook's passes (`refbn.reference`) are mutated by a table of operators (`operators`, `generate`), each mutant is
run as a batch norm of its own (`textbook`, `adapter`), and three kinds of checks look at it: the audit, quick and full
(`judge`); `torch.autograd.gradcheck` and `gradgradcheck` on it as a custom function (`custom`, `torch_checks`);
`jax.test_util.check_grads` likewise (`jax_checks`). A mutant that no case of the audit finds is run on a dense set of
other inputs, which tells equivalent mutants from survivors. `table` writes ``docs/mutation.md`` from the dated result.

    python -m validation.mutants run
    python -m validation.mutants table
    python -m validation.mutants show ID
"""
