import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sktransfer.backbones._weights import (
    WeightsMismatchError,
    apply_weights,
    file_sha256,
    module_digest,
    read_weights,
)


@pytest.fixture
def state():
    torch.manual_seed(0)
    return {"0.weight": torch.randn(4, 3), "0.bias": torch.randn(4)}


def test_both_file_formats_are_read(tmp_path, state):
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "a.pth")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "b.pt")
    torch.save({f"module.{k}": v for k, v in state.items()}, tmp_path / "c.pt")
    for name in ["a.safetensors", "a.pth", "b.pt", "c.pt"]:
        found = read_weights(tmp_path / name)
        assert found.keys() == state.keys()
        assert all(torch.equal(found[key], state[key]) for key in state)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_no_code_in_a_file_is_executed(tmp_path):
    torch.save({"w": Bomb(tmp_path / "was-executed")}, tmp_path / "evil.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Bomb(tmp_path / "was-executed")))
    for name in ["evil.pth", "plain.pth"]:
        with pytest.raises(ValueError, match="nothing was executed"):
            read_weights(tmp_path / name)
    assert not (tmp_path / "was-executed").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_truncated_file_is_refused_by_name(tmp_path, state, suffix):
    path = tmp_path / f"cut{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=rf"cut\{suffix}.*Copy the file again"):
        read_weights(path)


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, torch.zeros(2)])
def test_what_is_no_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="no state dict"):
        read_weights(tmp_path / "a.pth")


def test_missing_file_and_unknown_suffix(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no weights file .*no.pth"):
        read_weights(tmp_path / "no.pth")
    (tmp_path / "a.h5").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"its suffix is '.h5'"):
        read_weights(tmp_path / "a.h5")


def test_a_demanded_hash_is_checked(tmp_path, state):
    path = tmp_path / "a.safetensors"
    save_file(state, path)
    found = file_sha256(path)
    for digits in [found, found[:8], found.upper()]:
        assert read_weights(path, f"sha256:{digits}").keys() == state.keys()
    with pytest.raises(WeightsMismatchError, match="'0{64}' was demanded"):
        read_weights(path, "sha256:" + "0" * 64)
    with pytest.raises(ValueError, match="Invalid hash 'md5:1'"):
        read_weights(path, "md5:1")


def test_weights_are_applied_and_a_dropped_classifier_ignored(state):
    body = nn.Sequential(nn.Linear(3, 4))
    model = nn.Sequential(body[0], nn.Linear(4, 2))
    apply_weights(model, body, {**state, "1.weight": torch.zeros(9, 4)}, "here")
    assert torch.equal(body[0].weight, state["0.weight"])


def test_a_counter_may_be_missing_or_a_vector_of_one():
    norm = nn.BatchNorm2d(2)
    state = {**norm.state_dict(), "weight": torch.tensor([2.0, 3.0])}
    state["num_batches_tracked"] = torch.tensor([7])
    apply_weights(norm, norm, state, "here")
    assert norm.num_batches_tracked.item() == 7
    del state["num_batches_tracked"]
    apply_weights(norm, norm, state, "here")
    assert norm.weight.tolist() == [2.0, 3.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("0.bias"), "it lacks 0.bias"),
        (lambda s: s.update(extra=torch.zeros(1)), "it has unknown extra"),
        (
            lambda s: s.update({"0.bias": torch.zeros(5)}),
            r"0.bias has shape \(5,\), not \(4,\)",
        ),
    ],
)
def test_a_mismatch_says_which_and_loads_nothing(state, change, message):
    body = nn.Sequential(nn.Linear(3, 4))
    before = module_digest(body)
    change(state)
    with pytest.raises(WeightsMismatchError, match=message):
        apply_weights(body, body, state, "here")
    assert module_digest(body) == before


def test_a_digest_tells_weights_and_structure_apart():
    torch.manual_seed(0)
    one = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    same = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    assert module_digest(one) != module_digest(same)
    same.load_state_dict(one.state_dict())
    assert module_digest(one) == module_digest(same)
    same[1].running_mean += 1e-6
    assert module_digest(one) != module_digest(same)
    relu = nn.Sequential(nn.ReLU())
    assert module_digest(relu) != module_digest(nn.Sequential(nn.GELU()))
