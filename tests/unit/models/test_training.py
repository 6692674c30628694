"""Training a compressed folder with the usual tools: transformers' Trainer, PEFT's LoRA."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import model as lora_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from karipap_core.errors import InputError
from karipap_core.models.adapters import NetworkEmbedding, NetworkLinear, register
from karipap_core.networks import NETWORKS
from karipap_core.plan.document import Plan
from tests.helpers.architectures import make
from tests.helpers.folders import folder_of, plan_for

IDS = (torch.arange(48) * 7 % 250).reshape(2, 24)
FLOATS = {"q": ("lowrank", None), "up": ("mpo", None), "down": ("lowrank", None)}


def table_plan(model: Path) -> Plan:
    """FLOATS, and the embedding, which a tied head shares."""
    plan = plan_for(model, FLOATS)
    entry = NETWORKS["lowrank"].for_shape(263, 48, 12).to_json()
    return Plan(
        plan.model, "weight", plan.weights | {"model.embed_tokens": entry}, embedding={"kind": "lowrank", "chi": 12}
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("training")
    model = make("llama", root / "model")
    plans = {"floats": plan_for(model, FLOATS), "packed": plan_for(model), "table": table_plan(model)}
    return {name: folder_of(model, root / name, plan) for name, plan in plans.items()}


def trainer(model, out: Path, **more) -> Trainer:
    settings = {"max_steps": 6, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "logging_steps": 1}
    settings |= {"report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
    rows = [{"input_ids": row.tolist(), "labels": row.tolist()} for row in IDS]
    return Trainer(model, TrainingArguments(output_dir=str(out), **settings | more), train_dataset=rows)


def test_the_trainer_trains_float_cores_and_what_it_saves_opens_again(folders, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(folders["floats"])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    work = trainer(model, tmp_path, save_strategy="steps", save_steps=3)
    work.train()
    losses = [entry["loss"] for entry in work.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.5
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {f"model.layers.1.self_attn.q_proj.cores.{k}" for k in range(2)} <= moved
    work.save_model(str(tmp_path / "saved"))
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert all(torch.equal(value, back.state_dict()[name]) for name, value in model.state_dict().items())
    again = trainer(AutoModelForCausalLM.from_pretrained(folders["floats"]), tmp_path)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert again.state.log_history[-2]["loss"] == pytest.approx(losses[-1], abs=1e-5)


def test_the_trainer_takes_packed_cores_with_an_adapter_alone(folders, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(folders["packed"])
    with pytest.raises(ValueError, match="purely quantized"):
        trainer(model, tmp_path)
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    work = trainer(model, tmp_path)
    work.train()
    losses = [entry["loss"] for entry in work.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("folder", "targets", "count", "more"),
    [
        ("floats", ["q_proj"], 2, {}),
        ("packed", "all-linear", 8, {}),
        ("table", ["embed_tokens", "up_proj", "v_proj"], 3, {"use_rslora": True}),
        ("floats", ["up_proj"], 2, {"use_dora": True}),
    ],
)
def test_an_adapter_learns_is_saved_and_put_on_again(folders, tmp_path, folder, targets, count, more):
    model = AutoModelForCausalLM.from_pretrained(folders[folder])
    before = model(IDS).logits.detach()
    model = get_peft_model(model, LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM", **more))
    assert sum(isinstance(module, NetworkLinear | NetworkEmbedding) for module in model.modules()) == count
    torch.testing.assert_close(model(IDS).logits, before)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-2)
    losses = []
    for _ in range(5):
        losses.append(model(IDS, labels=IDS).loss)
        losses[-1].backward()
        assert all(parameter.grad is None for parameter in model.parameters() if not parameter.requires_grad)
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    model.save_pretrained(tmp_path)
    back = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folders[folder]), tmp_path)
    after = model.eval()(IDS).logits
    assert torch.equal(back.eval()(IDS).logits, after)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(InputError, match="cannot be merged into a compressed layer"):
            merge()
    assert torch.equal(model(IDS).logits, after)


def test_a_whole_layer_is_trained_beside_the_adapter_where_it_has_numbers_of_its_own(folders):
    settings = {"r": 2, "target_modules": ["v_proj"]}
    model = AutoModelForCausalLM.from_pretrained(folders["table"])
    with pytest.raises(InputError, match="its cores are another layer's"):
        get_peft_model(model, LoraConfig(modules_to_save=["lm_head"], **settings))
    model = AutoModelForCausalLM.from_pretrained(folders["table"])
    model = get_peft_model(model, LoraConfig(modules_to_save=["embed_tokens"], **settings))
    model(IDS, labels=IDS).loss.backward()
    learning = [name for name, value in model.named_parameters() if value.grad is not None and "lora" not in name]
    assert [name.rpartition("default.")[2] for name in learning] == ["cores.0", "cores.1"]
    with pytest.raises(InputError, match="packed in few bits"):
        packed = AutoModelForCausalLM.from_pretrained(folders["packed"])
        get_peft_model(packed, LoraConfig(modules_to_save=["down_proj"], **settings))


def test_a_peft_that_is_made_otherwise_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(lora_model, "dispatch_default", lambda target, adapter_name, lora_config, **more: None)
    before = lora_model.dispatch_default
    with pytest.warns(UserWarning, match=r"puts no LoRA on Karipap's compressed layers; 0\.21\.2 does"):
        register()
    assert lora_model.dispatch_default is before


def test_an_adapter_that_would_write_to_the_weight_beneath_is_refused(folders):
    model = AutoModelForCausalLM.from_pretrained(folders["floats"])
    with pytest.raises(InputError, match="init_lora_weights 'pissa' changes the weight beneath"):
        get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa"))
