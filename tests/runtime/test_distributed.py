"""Two gloo processes exchange values and gradients as one process would; this file is also what they run."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch

import settings
from clip_finetuning.runtime import console, distributed
from tests.helpers import launch
from tests.processes import run_ranks


def embeddings_and_loss(rows):
    """A tiny model on fixed data: the loss of row i depends on all rows, and on a scale that no row owns."""
    torch.manual_seed(0)
    model, scale = torch.nn.Linear(6, 4), torch.nn.Parameter(torch.tensor(1.5))
    own = model(torch.randn(8, 6)[rows])
    everything = distributed.gather_with_gradient(own, distributed.room_for(own))
    loss = (scale * everything @ everything.T).logsumexp(1).mean()
    loss.backward()
    parameters = [*model.parameters(), scale]
    distributed.average([p.grad for p in parameters])
    return [p.grad for p in parameters]


def test_a_single_process_has_nothing_to_exchange(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert distributed.start() == (0, 1, 0)
    assert distributed.gather_objects("a") == ["a"]
    assert distributed.any_rank(True) is True
    assert distributed.any_rank(False) is False
    tensor = torch.ones(2, requires_grad=True)
    assert distributed.gather_with_gradient(tensor, distributed.room_for(tensor)) is tensor
    distributed.end(0)  # it goes on


def test_an_environment_without_an_address_is_refused(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(ValueError, match="start with torchrun"):
        distributed.start()


def test_two_processes_get_the_gradients_of_one(tmp_path):
    run = run_ranks(__file__, "exchange", tmp_path)
    assert run.returncode == 0, run.stderr
    expected = embeddings_and_loss(slice(None))
    for rank in range(2):
        seen = json.loads((tmp_path / f"{rank}.json").read_text())
        assert seen["objects"] == [{"rank": 0}, {"rank": 1}]
        assert seen["any"] == [True, False]
        assert seen["broadcast"] == [0.0, 0.0]
        assert seen["until"] == [list(range(3 - 2 * rank)), "stopped"]
        for gradient, reference in zip(seen["gradients"], expected):
            torch.testing.assert_close(torch.tensor(gradient), reference, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("job", ["fail", "refuse"])
def test_one_failing_rank_ends_all(job):
    run = launch(__file__, job)  # which does not wait for ever
    assert run.returncode != 0
    assert "broken on purpose" in run.stderr


def test_processes_that_torchrun_restarts_meet_again(tmp_path):
    """Also where the addresses of those that are gone still lie in torchrun's store."""
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        run = launch(__file__, "die once", tmp_path / str(number), restarts=2)
        assert run.returncode == 0, run.stderr
        assert [(tmp_path / str(number) / f"{rank}.json").exists() for rank in range(2)] == [True, True]


def worker(job, folder=None):
    ranks = distributed.start()
    if job == "die once" and not Path(folder, "died").exists():
        distributed.gather_objects("all are here")
        if ranks.rank == 1:
            Path(folder, "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
    if job == "fail" and ranks.rank == 1:
        raise RuntimeError("broken on purpose")
    if job == "refuse" and ranks.rank == 1:
        raise SystemExit("broken on purpose")
    if job in ("fail", "refuse"):
        distributed.gather_objects("the other rank never answers")
    batches = range(3 - 2 * ranks.rank)  # rank 1 is through long before rank 0
    seen_batches = [list(distributed.until(lambda: distributed.any_rank(False), batches))]
    try:
        asked = iter([False, True, True])  # and yet it is rank 1 that wants to stop then
        seen_batches.append(
            list(distributed.until(lambda: distributed.any_rank(ranks.rank == 1 and next(asked)), batches))
        )
    except distributed.Stopped:
        seen_batches.append("stopped")
    half = slice(4 * ranks.rank, 4 * ranks.rank + 4)
    seen = {"objects": distributed.gather_objects({"rank": ranks.rank})}
    seen["any"] = [distributed.any_rank(ranks.rank == 1), distributed.any_rank(False)]
    seen["gradients"] = [g.tolist() for g in embeddings_and_loss(half)]
    seen["until"] = seen_batches
    parameter = torch.nn.Parameter(torch.full((2,), float(ranks.rank)))
    distributed.broadcast([parameter])
    seen["broadcast"] = parameter.tolist()
    Path(folder, f"{ranks.rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    console.run(lambda: worker(*sys.argv[1:]), settings)
