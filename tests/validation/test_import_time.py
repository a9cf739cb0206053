from validation.import_time import _run, added_modules, foreign, measure, plugin_cost


def test_nothing_optional_is_imported():
    added = added_modules()
    assert "refbn._api" in added
    assert foreign(added) == []


def test_what_is_foreign():
    assert foreign(["torch", "torch.nn", "json.decoder", "refbn.layer", "numpy.typing", "ml_dtypes"]) == [
        "torch",
        "torch.nn",
        "ml_dtypes",
    ]


def test_costs_are_measured_with_numpy_included():
    for cost in measure(runs=1).values():
        assert cost.numpy > 0 and cost.refbn > 0
        assert cost.over == cost.refbn - cost.numpy


def test_the_plugin_brings_nothing_but_itself():
    assert _run("pytest, _refbn_pytest")[1] - _run("pytest")[1] <= {"_refbn_pytest"}
    assert plugin_cost(runs=1).keys() == {"wall", "processor"}
