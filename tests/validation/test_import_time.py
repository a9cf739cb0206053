from validation.import_time import added_modules, foreign, measure


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
