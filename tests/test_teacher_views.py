"""--teacher_views: the teacher's embeddings of fixed crops are those of the step; what does not fit is refused."""
import shutil

import pytest
import torch

import run_distill
from conftest import distil_for
from engine import precision
from engine.precision import Precision
from results import failure
from views import TERMS, VIEWS, argv, network_of

CPU = torch.device("cpu")


@pytest.fixture
def job(monkeypatch):
    """The last job that ``run_distill`` would have trained."""
    jobs = []
    monkeypatch.setattr(run_distill, "fit", jobs.append)
    return lambda: jobs[-1]


def _step(job, teacher, batch):
    """Return (loss, gradients) of a step on this batch."""
    student = job.network.train()
    student.load_state_dict(job.start)
    student.zero_grad()
    criteria = {name: trained.module for name, trained in job.criteria.items()}
    loss = sum(run_distill.build_step(student, teacher, job.run.args, criteria)(*batch).values())
    loss.backward()
    return loss.detach(), torch.cat([parameter.grad.flatten() for parameter in student.parameters()])


@pytest.mark.parametrize("more", [[], ["--views", "2", "--crop", "resized"], ["--cache", "off"]], ids=str)
def test_a_step_is_that_with_the_teacher_on_the_same_crops(teacher, job, capsys, more):
    assert run_distill.main(argv(teacher, *more)) == 0
    network, found = network_of(teacher), job()
    batches = list(found.data.batches.epoch(1))
    start = {name: value.clone() for name, value in found.network.state_dict().items()}
    found = type("Started", (), dict(found._asdict(), start=start))
    assert len(batches) == 2 and not torch.equal(batches[0][0], batches[1][0])
    for images, labels, embeddings in batches:
        with torch.no_grad():
            expected = network(images)
        assert embeddings.dtype == torch.float32 and torch.allclose(embeddings, expected, rtol=0, atol=1e-6)
        kept_loss, kept_gradient = _step(found, None, (images, labels, embeddings))
        loss, gradient = _step(found, network, (images, labels))
        assert float(kept_loss) == pytest.approx(float(loss), rel=1e-5) and float(loss) > 0
        assert torch.allclose(kept_gradient, gradient, rtol=1e-3, atol=1e-6 * float(gradient.abs().max() + 1))
        exact = _step(found, None, (images, labels, expected))  # the same arithmetic from there on, bit for bit
        assert torch.equal(exact[0], loss) and torch.equal(exact[1], gradient)


@pytest.mark.skipif(precision._why_it_fails("bf16", CPU) is not None, reason="no bf16 autocast on this CPU")
def test_embeddings_are_in_the_precision_of_the_steps(teacher, job):
    assert run_distill.main(argv(teacher, "--precision", "bf16")) == 0
    network = network_of(teacher)
    images, _, embeddings = next(iter(job().data.batches.epoch(1)))
    with torch.no_grad():
        exact = network(images)
        with Precision("bf16", CPU).autocast():
            expected = network(images)
    assert (embeddings - expected).abs().max() <= 1e-6 < (embeddings - exact).abs().max()


@pytest.mark.parametrize("more, calls", [
    ([], [8] * 2), (["--views", "2"], [8] * 2),  # a batch of 8 rows in each of the two steps
    (["--teacher_views", str(VIEWS)], [8, 8, 2] * VIEWS)], ids=str)  # the 18 pictures, and nothing in the steps
def test_the_teacher_is_called_once_a_step_or_once_a_crop_and_without_gradients(teacher, monkeypatch, more, calls):
    found, original = [], run_distill.frozen

    def counted(run, network):
        network = original(run, network)
        network.register_forward_hook(lambda module, inputs, outputs: found.append(
            (len(inputs[0]), module.training, any(part.requires_grad for part in (
                outputs if isinstance(outputs, tuple) else [outputs])))))
        return network

    monkeypatch.setattr(run_distill, "frozen", counted)
    assert run_distill.main(distil_for(teacher, *TERMS, "--epochs", "1", "--cache", "off", *more)) == 0
    measured = [8, 8, 2] * 2  # both sets, 18 pictures each
    assert found == [(size, False, False) for size in measured + calls]


@pytest.mark.parametrize("more, expected", [
    (["--at_ratio", "1"], "--at_ratio needs the maps of the teacher's stages, and --teacher_views keeps"),
    (["--views", "4"], "--teacher_views 3 are fewer crops than --views 4 takes of a picture; take at least as many"),
    (["--teacher_views", "-1"], "'-1' is not a whole number of at least 0"),
])
def test_options_that_do_not_fit(teacher, capsys, more, expected):
    assert expected in failure(capsys, run_distill.main, argv(teacher, *more))


def test_embeddings_that_are_not_finite_stop_the_run(teacher, tmp_path, capsys):
    shutil.copytree(teacher, str(tmp_path / "teacher"))
    weights = torch.load(str(tmp_path / "teacher" / "best.pth"))
    for name in weights:
        if name.endswith("bn1.weight"):
            weights[name] *= 1e30
    torch.save(weights, str(tmp_path / "teacher" / "best.pth"))
    line = failure(capsys, run_distill.main, argv(tmp_path / "teacher", "--cache", "off"), code=1)
    assert "are not finite" in line
