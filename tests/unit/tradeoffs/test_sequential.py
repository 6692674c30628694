"""Second moments behind quantized blocks, against passes of the whole model in memory."""

from contextlib import ExitStack

import pytest
import torch

from karipap_core.models.sites import observe, sites
from karipap_core.plan.behind import WINDOWS
from karipap_core.plan.study import Study
from karipap_core.quantization.rounding import quantize_gptq
from karipap_core.tradeoffs.sequential import in_sequence
from karipap_core.workspace import Workspace
from tests.helpers.architectures import make
from tests.helpers.studies import CALIBRATION, SETTINGS


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral", "falcon", "gemma2"])
def test_a_block_is_quantized_on_what_the_quantized_blocks_before_it_hand_on(kind, tmp_path):
    study = Study(make(kind, tmp_path / "model"), CALIBRATION, SETTINGS, "cpu", Workspace(tmp_path / "workspace"))
    given: dict[str, torch.Tensor] = {}

    def quantize(name, C):
        given[name] = C.clone()
        return quantize_gptq(study.checkpoint.read(name), 2, 8, C)

    found = in_sequence(study, [weight.name for weight in study.measurable], quantize)
    assert found.keys() == {weight.name for weight in study.measurable}
    inside = {weight.name for weight in study.weights if weight.layer is not None and weight.expert is None}
    assert study.moments.folder.exists() == (inside != found.keys()), "a whole pass, and nobody needs its moments"

    model, windows = study.model[0], study.windows.moments[:WINDOWS]
    live = sites(model, study.checkpoint)

    def behind(weight) -> torch.Tensor:
        seen: list[torch.Tensor] = []
        with ExitStack() as stack, torch.no_grad():
            for other in study.weights:
                if other.layer is not None and other.layer < weight.layer:
                    stack.enter_context(live[other.name].replaced(found[other.name].dense()))
            stack.enter_context(observe({weight.name: live[weight.name]}, lambda _, x: seen.append(x.double())))
            model(windows)
        x = torch.cat(seen)
        return x.T @ x / len(x)

    differs = 0
    for weight in study.weights:
        dense, own = study.moments.metric(weight.name, "functional").C, given[weight.name]
        if weight.name not in inside:
            torch.testing.assert_close(own, dense, rtol=0, atol=0)
            continue
        # What stands between blocks is float32, and sums go another way.
        largest = float(dense.abs().max())
        torch.testing.assert_close(own, behind(weight), rtol=1e-3, atol=1e-4 * largest)
        differs += not torch.allclose(own, dense, rtol=1e-2, atol=1e-3 * largest)
    assert differs, "and that is another moment than the dense model's"
