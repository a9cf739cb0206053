"""The studies of the papers on batch norm: ``python -m validation.studies``.

Each takes one claim, measures it with networks written in NumPy on refbn's own passes, and says whether the numbers
confirm it. A study is a module with a constant ``STUDY``; `MODULES` lists them.
"""

from __future__ import annotations

import importlib

from validation.studies.study import Study

__all__ = ["MODULES", "load"]

MODULES = {
    # Zhou et al., Batch Normalization Is Blind to the First and Second Derivatives of the Loss
    "Z1": "z1_linear_term",
    "Z2": "z2_hessian_diagonal",
    "Z3": "z3_off_diagonal",
    "Z4": "z4_sample_losses",
    "Z5": "z5_remainder",
    "Z6": "z6_cause",
    "E1": "e1_one_category_batches",
    "E2": "e2_normalizing_flow",
    # Bjorck et al., Understanding Batch Normalization
    "B1": "b1_learning_rate",
    "B2": "b2_sgd_noise",
    "B3": "b3_gradient_tails",
    "B4": "b4_step_size",
    "B5": "b5_divergence",
    "B6": "b6_moments_over_depth",
    "B7": "b7_output_gradients",
    "B8": "b8_filter_gradients",
    "B9": "b9_gaussian_products",
    # Uppal, Curse of Batch Normalization
    "U1": "u1_benefits",
    "U2": "u2_small_batches",
    "U3": "u3_train_and_test",
    "U4": "u4_online",
    "U5": "u5_recurrent",
    "U6": "u6_alternatives",
}
"""Where each study is, by its id, in the order in which they are told."""


def load(identity: str) -> Study:
    """Return a study."""
    study: Study = importlib.import_module(f"validation.studies.{MODULES[identity]}").STUDY
    return study
