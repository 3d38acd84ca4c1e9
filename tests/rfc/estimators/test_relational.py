"""What relational estimators ask of a site's input and output."""

import pytest
import torch

import rfc
from rfc.state import SlotSpec


@pytest.mark.parametrize("estimator", [rfc.RFE(norm="token"), rfc.Projective(per="token", sketch=2)])
def test_an_output_without_a_token_of_the_input_for_each_of_its_own_is_refused_per_token(estimator: rfc.Estimator) -> None:
    joint, text = SlotSpec((2, 14, 32), torch.float32), SlotSpec((2, 6, 32), torch.float32)
    with pytest.raises(ValueError, match=r"='token' needs a token of the input for each of the output, got \(2, 14, 32\) and \(2, 6, 32\)"):
        estimator.slots(joint, text)
    assert estimator.slots(joint, SlotSpec((2, 14, 64), torch.float32))


def test_one_coefficient_a_sample_takes_an_output_of_other_tokens() -> None:
    joint, text = SlotSpec((2, 14, 32), torch.float32), SlotSpec((2, 6, 32), torch.float32)
    assert rfc.RFE().slots(joint, text)["speed"].shape == (2, 1, 1)
