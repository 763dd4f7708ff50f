"""Two processes train as one, sample as one, and go on when one of them has died: over gloo, as launchers start them.

Their work is in ``tests/ranks.py``; starting processes takes most of the time, so that they do all of it in one go.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from ranks import METHODS, known_plan, penalised, train_known
from same_run import assert_same_run
from tiny import tiny_plan, weights
from trilemma.augment.diffusion import DiffusionNoiseOptions
from trilemma.engine import evaluate as evaluation
from trilemma.engine import processes
from trilemma.engine.checkpoint import checkpoints
from trilemma.engine.generator import Generator, sample_seeds
from trilemma.engine.processes import Gradients, check_shares, company, restarted
from trilemma.engine.run import Run
from trilemma.engine.train import build_method, train
from trilemma.errors import ConfigError, RunError
from trilemma.methods import method_names
from trilemma.types import Sampler

TESTS = Path(__file__).resolve().parents[1]
TORCHRUN = "torch.distributed.run --standalone --nproc-per-node 2"
ACCELERATE = "accelerate.commands.launch --multi_gpu --num_processes 2 --main_process_port 0"  # it asks for no GPU
SECONDS = 120.0  # after which a job is ended: many times what it takes


def launch(launcher: str, mode: str, folder: Path) -> tuple[int, str, str]:
    """Two processes on this machine's CPU, told of no device: status, what they print, and what they complain of."""
    return ended(start(launcher, mode, folder))


def start(launcher: str, mode: str, folder: Path) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ACCELERATE_")}
    environment |= {"PYTHONPATH": os.pathsep.join([str(TESTS.parent / "src"), str(TESTS)]), "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"HF_HOME": str(folder.parent / "no-settings")}  # the user's would go before flags
    command = [sys.executable, "-m", *launcher.split(), str(TESTS / "ranks.py"), mode, str(folder)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def ended(started: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        words, complaints = started.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(started.pid, signal.SIGKILL)  # the launcher and what it started
        pytest.fail(f"no end after {SECONDS} s: {started.communicate()[1][-3000:]}")
    return started.returncode, words, complaints


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes leave behind."""
    folder = tmp_path_factory.mktemp("two")
    status, _, complaints = launch(ACCELERATE, "all", folder)
    assert status == 0, complaints[-3000:]
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of one process with the same images and noise."""
    folder = tmp_path_factory.mktemp("one")
    train_known(folder / "run")
    return folder / "run" / "model.safetensors"


# Training


def test_two_processes_are_one_with_the_whole_batch(two: Path, one: Path) -> None:
    """To a few roundings of float32, after four steps that moved weights by more than a thousand times as much."""
    found, expected = weights(two / "known" / "model.safetensors"), weights(one)
    start = build_method(known_plan()).networks()["denoiser"].state_dict()
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, atol=2e-6, rtol=1e-5)
    moved = max(float((value - start[key.removeprefix("denoiser.")]).abs().max()) for key, value in expected.items())
    assert moved > 2e-3


def test_two_machines_are_one_with_the_whole_batch(tmp_path: Path, one: Path) -> None:
    """Two launchers that find each other, with a process each: what a job's machines have, here at one address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = f"--nnodes 2 --nproc-per-node 1 --rdzv-id job --rdzv-backend c10d --rdzv-endpoint 127.0.0.1:{port}"
    machines = [start(f"torch.distributed.run {job}", "machine", tmp_path / "run") for _ in range(2)]
    found = [ended(machine) for machine in machines]
    assert [status for status, *_ in found] == [0, 0], found[0][2][-3000:]
    assert sorted(words for _, words, _ in found) == [f"process {rank} of 2, 0 here\n" for rank in range(2)]
    for key, value in weights(one).items():
        torch.testing.assert_close(weights(tmp_path / "run" / "model.safetensors")[key], value, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("parts", [2, 3])
def test_a_batch_in_parts_is_the_whole_batch(tmp_path: Path, one: Path, parts: int) -> None:
    train_known(tmp_path / "run", accumulate=parts)
    found, expected = weights(tmp_path / "run" / "model.safetensors"), weights(one)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_processes_agree_on_all_weights_and_their_averages(two: Path, name: str) -> None:
    """With R1, R2 and path lengths at every other step, and noise of each process's own; also on averages of w."""
    first, second = (weights(two / f"{name}-{rank}.safetensors") for rank in (0, 1))
    assert [key for key in first if not torch.equal(first[key], second[key])] == []
    averaged = [key for key in first if key.startswith("average.")]
    assert len(first) > 10 and len(averaged) > 3
    assert any(not torch.equal(first[key], first[key.removeprefix("average.")]) for key in averaged)


@pytest.mark.parametrize(
    ("name", "messages"), [("ddgan", 8), ("spigan", 8), ("stylegan2", 12), ("diffusion_gan", 12), ("vae", 4)]
)
def test_gradients_are_sent_once_for_each_step_of_an_optimiser(two: Path, name: str, messages: int) -> None:
    """Four steps of G and of D each; StyleGAN2's two penalties are steps of their own, here two of each."""
    assert [int(weights(two / f"{name}-{rank}.safetensors")["messages"]) for rank in (0, 1)] == [messages] * 2


def test_gradients_of_penalties_are_those_of_the_whole_batch(two: Path) -> None:
    """R1 and R2 are differentiated twice; to a few roundings of float32."""
    expected = penalised(0, 1)
    for rank in (0, 1):
        found = weights(two / f"penalised-{rank}.safetensors")
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, atol=1e-6, rtol=1e-5)


def test_processes_agree_on_what_ada_has_seen_and_the_mean_path_length(two: Path) -> None:
    """ADA's strength is adjusted after three steps; the fourth is augmented and has counted the images of both."""
    found = [weights(two / f"stylegan2-{rank}.safetensors") for rank in (0, 1)]
    assert found[0]["controller.images"] == 8
    assert float(found[0]["controller.p"]) == pytest.approx(24 / 50)
    assert found[0]["path_mean"] != 0 and found[0]["generator.mapping.w_avg"].abs().max() > 0


def test_processes_agree_on_the_noise_of_a_diffusion_gan(two: Path) -> None:
    """Its strength is adjusted after two steps and after four."""
    found = weights(two / "diffusion_gan-0.safetensors")
    assert float(found["controller.p"]) == pytest.approx(32 / 50)
    assert int(found["noise.T"]) > DiffusionNoiseOptions().t_min


def test_the_log_is_written_by_one(two: Path) -> None:
    assert [record["step"] for record in Run(two / "known").read_log()] == sorted(
        {record["step"] for record in Run(two / "known").read_log()}
    )


def test_parts_of_a_batch_are_consecutive_and_whole() -> None:
    gradients = Gradients({"net": nn.Linear(1, 1)}, lambda loss: loss.backward(), parts=3)
    assert [(part.start, part.stop) for part in gradients.parts(8)] == [(0, 2), (2, 5), (5, 8)]
    assert [(part.start, part.stop) for part in gradients.parts(2)] == [(0, 1), (1, 2)]


def test_unequal_shares_are_refused() -> None:
    check_shares(batch_size=8, accumulate=4, processes=2)
    with pytest.raises(ConfigError, match="9 cannot be shared equally by 2 processes: take 8 or 10"):
        check_shares(batch_size=9, accumulate=1, processes=2)
    with pytest.raises(ConfigError, match="1 cannot be shared equally by 2 processes: take 2$"):
        check_shares(batch_size=1, accumulate=1, processes=2)
    with pytest.raises(ConfigError, match="accumulate 5 is more than the 4 images"):
        check_shares(batch_size=8, accumulate=5, processes=2)
    with pytest.raises(ConfigError, match="9 cannot be shared.*; training.accumulate 5 is more than the 4"):
        check_shares(batch_size=9, accumulate=5, processes=2)


@pytest.mark.parametrize("name", method_names())
def test_accumulation_is_no_other_training(tmp_path: Path, name: str) -> None:
    """A run may be resumed with another number of parts."""
    plan = tiny_plan(name, images=8, snapshots=0)
    train(plan, tmp_path / "run")
    longer = replace(plan, training=replace(plan.training, accumulate=2), budget=replace(plan.budget, images=16))
    train(longer, tmp_path / "run", resume=True)
    assert Run(tmp_path / "run").config()["training"]["accumulate"] == 2


# Signals


def test_a_signal_to_one_stops_both_and_they_go_on_as_if_it_had_not(two: Path) -> None:
    assert [(two / f"stopped-{rank}.txt").read_text() for rank in (0, 1)] == ["143 step-000000002"] * 2
    assert_same_run(two / "stopped", two / "unbroken")


# Sampling


def test_shared_samples_are_those_of_one_process(two: Path) -> None:
    """Four batches, the last of which is smaller; the second process keeps none."""
    generator = Generator.load(two / "known", device="cpu")
    expected = generator.stored(sample_seeds(0, 0, 25), Sampler(steps=2), batch_size=7)
    assert torch.equal(weights(two / "samples-0.safetensors")["samples"], expected)
    assert weights(two / "samples-1.safetensors")["samples"].shape == (0, 1, 8, 8)


def test_shared_scores_are_those_of_one_process(two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of points and of images: 300 samples and 1,797 digits are seen in batches of 250, by turns."""
    timed = evaluation.speed_scores
    monkeypatch.setattr(evaluation, "speed_scores", lambda *args, **kwargs: timed(*args, **kwargs, limit_seconds=0.0))
    first, second = (json.loads((two / f"scores-{rank}.json").read_text()) for rank in (0, 1))
    for kind, name, sampler, samples in (
        ("points", "unbroken", Sampler(), 250),
        ("images", "known", Sampler(steps=2), 300),
    ):
        run = Run(shutil.copytree(two / name, tmp_path / kind))
        alone = evaluation.evaluate(run, sampler, samples=samples, cache=False)
        written = next(path for path in (two / name).glob("eval*.json"))
        assert first[kind] == second[kind] == json.loads(written.read_text())
        judged = [score for score in alone["scores"] if "second" not in score]
        assert len(judged) > 3
        assert {score: first[kind]["scores"][score] for score in judged} == {
            score: alone["scores"][score] for score in judged
        }
    assert (first["looked"], second["looked"]) == (4 * 250 + 250, 3 * 250 + 47 + 50)


# A death


def test_torchrun_goes_on_after_a_death(tmp_path: Path) -> None:
    # The launcher looks seldom: else it may stop the survivor before that one has noticed anything.
    status, words, complaints = launch(f"{TORCHRUN} --max-restarts 1 --monitor-interval 3", "die", tmp_path / "run")
    assert status == 0, complaints[-3000:]
    assert "exitcode: " in complaints  # the launcher says who died first, as far as it can tell
    assert "lost the other processes of this job" in complaints
    steps = [int(step) for step in re.findall(r"step (\d+) after the restart", words)]
    assert steps[0] > 1 and steps == list(range(steps[0], 5))  # from a checkpoint, not from the start
    assert [record["step"] for record in Run(tmp_path / "run").read_log()][-1] == 4
    assert checkpoints(tmp_path / "run" / "checkpoints")[-1].name == "step-000000004.safetensors"
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_a_restart_is_known_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    assert not restarted()
    for count in (0, 2):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(count))
        assert restarted() == (count > 0)


def test_processes_that_were_started_again_read_no_address_of_those_before(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, found = torch.distributed.HashStore(), []
    monkeypatch.setattr(processes, "rendezvous", lambda *args, **kwargs: iter([(kept, 0, 2)]))
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, store, **__: found.append(store))
    for count in (1, 2):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(count))
        processes._connect_again("gloo")
        assert not found[-1].check(["address"])
        found[-1].set("address", "mine")
    assert not kept.check(["address"])


def test_a_lost_companion_is_one_line() -> None:
    with pytest.raises(RunError, match="lost the other processes of this job .*Connection closed by peer"), company():
        raise RuntimeError("[.../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234")
    with pytest.raises(RuntimeError, match="shapes"), company():
        raise RuntimeError("shapes do not match")
