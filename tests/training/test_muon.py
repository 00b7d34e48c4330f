"""Muon against torch's own, and against the orthogonal matrices that it approximates."""

import pytest
import torch

from clip_finetuning.training.muon import Muon, orthogonalized

SHAPES = [(8, 8), (24, 8), (8, 24), (24, 8), (1, 8)]


def parameters():
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def set_gradients(params, seed):
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 8, 32), (2, 32, 8)])
def test_singular_values_become_about_one_and_singular_vectors_stay(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 100
    found = orthogonalized(matrices)
    values = torch.linalg.svdvals(found)
    assert found.shape == matrices.shape
    assert (values > 0.6).all()
    assert (values < 1.3).all()
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    among_vectors = left.mT @ found @ right.mT
    off_diagonal = among_vectors - torch.diag_embed(torch.diagonal(among_vectors, dim1=1, dim2=2))
    assert off_diagonal.abs().max() < 1e-4


def test_matrices_of_a_batch_do_not_mix():
    matrices = torch.randn(4, 6, 10, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(orthogonalized(matrices)[2:3], orthogonalized(matrices[2:3]))


def test_a_zero_gradient_moves_nothing_but_the_decay():
    assert not orthogonalized(torch.zeros(1, 4, 6)).any()
    weight = torch.nn.Parameter(torch.ones(4, 6))
    weight.grad = torch.zeros(4, 6)
    Muon([weight], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(weight.data, torch.full((4, 6), 0.95))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_steps_are_those_of_torchs_muon():
    """Which computes in bfloat16: an update differs by the rounding of its 8 bits, five iterations long."""
    ours, theirs, start = parameters(), parameters(), parameters()
    options = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.1}
    optimizers = Muon(ours, **options), torch.optim.Muon(theirs, **options)
    for seed in range(3):
        for params, optimizer in zip((ours, theirs), optimizers):
            set_gradients(params, seed)
            optimizer.step()
    for p, q, begin in zip(ours, theirs, start):
        assert torch.dist(p, q) < 0.03 * torch.dist(p, begin)


def test_parameters_without_gradient_stay():
    params = parameters()
    set_gradients(params, 0)
    params[0].grad = None
    before = params[0].clone()
    Muon(params).step()
    assert torch.equal(params[0], before)


def test_state_goes_through_a_file_and_goes_on_to_the_bit(tmp_path):
    undisturbed, stopped = parameters(), parameters()
    optimizers = [Muon(undisturbed), Muon(stopped)]
    for params, optimizer in zip((undisturbed, stopped), optimizers):
        set_gradients(params, 0)
        optimizer.step()
    torch.save(optimizers[1].state_dict(), tmp_path / "state.pt")
    optimizers[1] = Muon(stopped)
    optimizers[1].load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for params, optimizer in zip((undisturbed, stopped), optimizers):
        set_gradients(params, 1)
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(undisturbed, stopped))


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"parameter of shape \(3,\): give that to AdamW"):
        Muon([torch.nn.Parameter(torch.zeros(3))])
