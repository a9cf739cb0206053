"""Who may import whom (architecture): read from the source, function-level imports included."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "refbn"
MODULES = sorted(PACKAGE.rglob("*.py"))

LAYERS = [
    {"_errors", "_formats"},
    {"_geometry", "dialects"},
    {"_types"},
    {"_validate"},
    {"_threads", "reference"},
    {"exact"},
    {"backends"},
    {"_api"},
    {"_norms", "_blindness"},
    {"layer"},
    {"audit"},
    {"testing"},
    {"cli"},
]
RANK = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}

# Optional packages, and the only files that may name them.
HOMES = {
    "numba": ("backends/numba.py", "backends/_numba_kernels.py"),
    "ml_dtypes": ("_formats.py",),
    "tensorflow": ("audit/adapters/tensorflow.py", "audit/adapters/keras.py"),
    "keras": ("audit/adapters/keras.py",),
    "torch": ("audit/adapters/torch.py", "audit/adapters/torch_variants.py"),
    "onnx": ("audit/adapters/onnx.py",),
    "onnxruntime": ("audit/adapters/onnxruntime.py",),
    "openvino": ("audit/adapters/openvino.py",),
    "paddle": ("audit/adapters/paddle.py",),
    "tinygrad": ("audit/adapters/tinygrad.py",),
    "jax": ("audit/adapters/_jax.py", *(f"audit/adapters/{name}.py" for name in ("jax", "flax", "equinox", "keras"))),
    "flax": ("audit/adapters/flax.py",),
    "equinox": ("audit/adapters/equinox.py",),
    "autograd": ("audit/adapters/autograd.py",),
    "rich": ("audit/",),
    "jinja2": ("audit/report/page.py",),
    "packaging": ("audit/known.py",),
    "jsonschema": ("audit/", "testing/vectors/"),
    "hypothesis": ("testing/strategies.py",),
    "pytest": ("testing/",),
    "refbn._native": ("backends/native.py",),
}
# Imported inside functions only.
FRAMEWORKS = {
    "torch",
    "jax",
    "flax",
    "equinox",
    "autograd",
    "tensorflow",
    "keras",
    "onnx",
    "onnxruntime",
    "openvino",
    "paddle",
    "tinygrad",
}


def imports(path):
    """Yield (module, at module level?) for every import statement."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    local = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) not in local
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", id(node) not in local


def room(name):
    return name.split(".")[1] if "." in name else ""


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path):
    relative = path.relative_to(PACKAGE).as_posix()
    own = relative.split("/")[0].removesuffix(".py")
    for name, top_level in imports(path):
        head = name.split(".")[0]
        assert head not in {"tests", "validation"}, f"{relative} imports {name}"
        for optional, homes in HOMES.items():
            if name == optional or name.startswith(optional + "."):
                assert relative.startswith(homes), f"{relative} imports {name}"
        if head in FRAMEWORKS or name.startswith("ml_dtypes"):
            assert not top_level, f"{relative} imports {name} at module level"
        if head == "refbn" and own != "__init__" and room(name) in RANK:
            target = room(name)
            assert target == own or RANK[target] < RANK[own], f"{relative} imports {name}"
    if own == "exact":
        rooms = {room(name) for name, _ in imports(path) if name.startswith("refbn.")}
        assert rooms <= {"_errors", "_formats", "exact"}, f"the oracle's route must be its own: {rooms}"


# What a process in another interpreter may load: it has NumPy, the framework, perhaps ml_dtypes, and not the C core.
ON_THE_OTHER_SIDE = {
    "refbn._errors",
    "refbn._formats",
    "refbn.dialects",
    "refbn.audit.remote.wire",
    "refbn.audit.remote.worker",
}
AT_HOME = {"own.py", "zoo.py"}  # run in this interpreter alone


@pytest.mark.parametrize(
    "path",
    [
        *(p for p in sorted((PACKAGE / "audit" / "adapters").glob("*.py")) if p.name not in AT_HOME),
        *(PACKAGE / "audit" / "remote" / f"{name}.py" for name in ("start", "worker", "wire")),
        *(PACKAGE / f"{name}.py" for name in ("_errors", "_formats", "dialects")),
    ],
    ids=lambda p: p.name,
)
def test_adapters_can_run_where_refbn_is_not_installed(path):
    for name, top_level in imports(path):
        if name.split(".")[0] == "refbn":
            module = name.rpartition(".")[0] if name not in ON_THE_OTHER_SIDE else name
            fine = module in ON_THE_OTHER_SIDE or module.startswith("refbn.audit.adapters")
            assert fine or name in ("refbn.audit.adapters", "refbn.audit.remote.wire"), f"{path.name} imports {name}"
        elif top_level:
            assert name.split(".")[0] in {*sys.stdlib_module_names, "numpy"}, f"{path.name} imports {name}"


def test_every_room_has_a_rank():
    rooms = {p.relative_to(PACKAGE).parts[0].removesuffix(".py") for p in MODULES} - {"__init__"}
    assert rooms == set(RANK)


def test_c_core_includes_no_python_header():
    sources = [p for p in (PACKAGE.parent / "_ext").iterdir() if p.suffix in {".c", ".h", ".inc"}]
    assert sources
    freestanding = {"stdint.h", "stddef.h", "float.h", "string.h", "limits.h", "math.h"}  # math.h: sqrt for MSVC
    more = {"threads.c": {"pthread.h", "sched.h", "signal.h"}, "lanes.h": {"immintrin.h"}}  # the compiler's own
    for source in sources:
        allowed = freestanding | more.get(source.name, set())
        for line in source.read_text(encoding="utf-8").splitlines():
            if line.lstrip().startswith("#") and "include <" in line:
                header = line.split("<")[1].split(">")[0]
                assert header in allowed, f"{source.name}: {line}"
