"""The audit: a framework's batch norm against the exact truth, operation by operation.

A case (`refbn.audit.cases`) is a line of text that fixes every input. The families (`refbn.audit.families`) are tables
of cases. An adapter (`refbn.audit.adapters`) makes one framework answer. The truth (`refbn.audit.truth`) and the bound
of a competent implementation (`refbn.audit.budget`) come from one definition, run over two kinds of numbers; the
comparison (`refbn.audit.compare`) gives three numbers and a verdict. `refbn.audit.selection` says where an adapter
runs, here or in another process (`refbn.audit.remote`). `refbn.audit.runner` puts them together, `refbn.audit.report`
renders what was found, and ``refbn audit`` (`refbn.audit.command`) is the way in.

Nothing is imported here: the parts have dependencies of their own, and ``import refbn`` must not meet them.
"""
