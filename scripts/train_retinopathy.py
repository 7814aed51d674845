"""Train and bundle the demonstration model ``retinopathy``.

    python scripts/train_retinopathy.py --images ../shared/data/fundus --out models/bundled

`--images` holds ``images/*.jpg`` and ``labels.csv`` (columns ``image``, ``icdr_grade``; empty where not graded).
Version 1 is a linear head on the published EfficientNet-Lite0, version 2 has the last blocks fine-tuned. Each version
is a run in MLflow too, see ``--mlflow``.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import onnx
import torch
from sklearn.model_selection import StratifiedKFold
from tqdm import tqdm
from training import cards, evaluation
from training.bundle import Head, fit_head, largest_difference, softmax, write_bundle
from training.finetune import Schedule, block_input, fine_tune, predict, tuned_head
from training.graph import build_graph, open_session, run_graph
from training.network import EMBEDDING, Network, published_weights, rounded
from training.pictures import Alteration, Picture, altered, folder_sha256, read_pictures, to_tensor
from training.runs import add_run_options, log_training, marked_quick

from models.card import Metric
from models.dvc import dvc_hash

SEED = 20
STRENGTH = 1e-4
ALTERATION = Alteration(rotation_degrees=25, zoom_fraction=0.08, shift_fraction=0.02, flips=True)
SCHEDULE = Schedule(first_block=15, epochs=8, batch=16, rate=1.5e-4)
BLOCK_INPUT = block_input(SCHEDULE.first_block)
REFERABLE_FROM = 2
LEAST_SENSITIVITY = 0.9
GRADES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is done."""

    folds: int = 5
    repeats: Mapping[int, int] = field(default_factory=lambda: {1: 5, 2: 2})
    """Of the cross-validation, by version."""
    views: int = 8
    """The photograph itself and altered copies."""
    schedule: Schedule = SCHEDULE
    graded_a_grade: int | None = None
    """At most so many photographs of a grade; None: all."""
    ungraded: int | None = None


QUICK = Plan(
    folds=2,
    repeats={1: 1, 2: 1},
    views=2,
    schedule=replace(SCHEDULE, epochs=2),
    graded_a_grade=6,
    ungraded=40,
)

Fitted = TypeVar("Fitted", Head, Network)


def read_grades(folder: Path) -> tuple[list[Path], npt.NDArray[np.int_]]:
    """All photographs, and their ICDR grade or -1."""
    with (folder / "labels.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    grades = [int(float(row["icdr_grade"])) if row["icdr_grade"] else -1 for row in rows]
    return [folder / "images" / row["image"] for row in rows], np.array(grades)


def few(paths: Sequence[Path], grades: npt.NDArray[np.int_], plan: Plan) -> tuple[list[Path], npt.NDArray[np.int_]]:
    """The first photographs of each grade, as many as the plan asks for."""
    kept: list[int] = []
    for grade in range(-1, GRADES):
        most = plan.ungraded if grade < 0 else plan.graded_a_grade
        kept.extend(int(index) for index in np.flatnonzero(grades == grade)[:most])
    kept.sort()
    return [paths[index] for index in kept], grades[kept]


def view_outputs(
    pictures: Sequence[Picture], outputs: Sequence[str], threads: int, views: int
) -> dict[str, npt.NDArray[np.float32]]:
    """Outputs of the published network for every view of every photograph, each [V, N, ...]."""
    contract = cards.RETINOPATHY_PIXELS
    blank = np.zeros((GRADES, EMBEDDING), np.float32)
    model = build_graph(published_weights(), blank, blank[:, 0], contract.size.rows)
    session = open_session(model, threads, also=outputs)
    random = np.random.default_rng(SEED)
    found = []
    for view in range(views):
        tensors = [
            to_tensor(picture.values if view == 0 else altered(picture.values, ALTERATION, random), contract)
            for picture in pictures
        ]
        found.append(run_graph(session, tensors, outputs, f"view {view}"))
    return {name: np.stack([view[name] for view in found]) for name in outputs}


def cross_validate(
    grades: npt.NDArray[np.int_],
    fit: Callable[[npt.NDArray[np.int_], int], Fitted],
    predict_with: Callable[[Fitted, int, npt.NDArray[np.int_]], npt.NDArray[np.float64]],
    repeats: int,
    count: int,
) -> npt.NDArray[np.float64]:
    """Out-of-fold probabilities [2, R, N, K], of the photographs (view 0) and of one altered copy each (view 1).

    `count` is that of the folds.
    """
    found = np.zeros((2, repeats, len(grades), GRADES))
    folds = [
        (repeat, *split)
        for repeat in range(repeats)
        for split in StratifiedKFold(count, shuffle=True, random_state=SEED + repeat).split(grades, grades)
    ]
    for number, (repeat, inside, outside) in enumerate(tqdm(folds, desc="folds")):
        fitted = fit(inside, SEED + number)
        for view in range(2):
            found[view, repeat, outside] = predict_with(fitted, view, outside)
    return found


def measure(
    grades: npt.NDArray[np.int_], probabilities: npt.NDArray[np.float64], folds: int
) -> tuple[tuple[Metric, ...], float, float]:
    """Metrics, the operating point and the score of high priority, from out-of-fold probabilities only.

    `probabilities` as of :func:`cross_validate`; the altered copies serve one metric and nothing else.
    """
    probabilities, altered_ones = probabilities
    repeats = len(probabilities)
    dataset = f"IDRiD, {len(grades)} graded photographs"
    validation = f"{repeats} x {folds}-fold stratified cross-validation by photograph"
    method, rate_method = f"{validation}; bootstrap of photographs", f"{validation}; Wilson's interval"
    referable = grades >= REFERABLE_FROM
    scores = probabilities[:, :, REFERABLE_FROM:].sum(axis=2)
    each = np.arange(len(grades))
    point = evaluation.operating_point(referable, scores, LEAST_SENSITIVITY)
    high = evaluation.high_priority_from(referable, scores, 0.97)
    altered_scores = altered_ones[:, :, REFERABLE_FROM:].sum(axis=2)
    altered_name = f"{dataset}, altered as in training"
    found = [
        evaluation.auc_metric("AUC, referable DR", dataset, referable, scores, each, method),
        evaluation.auc_metric("AUC, referable DR", altered_name, referable, altered_scores, each, method),
    ]
    slices = [
        ("sensitivity at the operating point", referable),
        ("specificity at the operating point", ~referable),
        ("sensitivity, grade 2 only", grades == REFERABLE_FROM),
        ("sensitivity, grades 3 and 4 only", grades > REFERABLE_FROM),
        ("specificity, grade 1 only", grades == 1),
    ]
    for name, counted in slices:
        correct = (scores >= point) == referable
        found.append(evaluation.rate_metric(name, dataset, correct[:, counted], each[counted], rate_method))
    kappa = [evaluation.quadratic_kappa(grades, chances.argmax(axis=1), GRADES) for chances in probabilities]
    found.append(
        Metric(
            name="quadratic kappa, five grades",
            dataset=dataset,
            value=round(float(np.mean(kappa)), 4),
            method=f"{validation}; mean over repeats",
        )
    )
    return tuple(found), point, max(high, round(point + 0.01, 2))


def lesion_metric(folder: Path, pictures: Sequence[Picture], model: onnx.ModelProto, threads: int) -> Metric:
    """How well the finished model tells ungraded photographs with a boxed lesion from those without.

    Another question than the grade, but of photographs that took no part in training.
    """
    with (folder / "labels.csv").open(encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if not row["icdr_grade"] and row["haemorrhage_boxes"]]
    boxes = {row["image"]: int(row["exudate_boxes"]) + int(row["haemorrhage_boxes"]) for row in rows}
    chosen = [picture for picture in pictures if picture.path.name in boxes]
    tensors = [to_tensor(picture.values, cards.RETINOPATHY_PIXELS) for picture in chosen]
    logits = run_graph(open_session(model, threads), tensors, ("logits",), "ungraded")["logits"]
    scores = softmax(logits)[None, :, REFERABLE_FROM:].sum(axis=2)
    truth = np.array([boxes[picture.path.name] > 0 for picture in chosen])
    dataset = f"IDRiD, {len(chosen)} ungraded photographs, {truth.sum()} of them with a box"
    method = "shipped weights on photographs not trained on; bootstrap of photographs"
    name = "AUC, boxed exudate or haemorrhage"
    return evaluation.auc_metric(name, dataset, truth, scores, np.arange(len(chosen)), method)


def train(
    version: int,
    pictures: Sequence[Picture],
    grades: npt.NDArray[np.int_],
    views: dict[str, npt.NDArray[np.float32]],
    options: argparse.Namespace,
    plan: Plan,
) -> None:
    """Cross-validate, fit on every graded photograph, and write the bundle of `version`."""
    graded = [picture for picture, grade in zip(pictures, grades, strict=True) if grade >= 0]
    known = grades[grades >= 0]
    weights = published_weights()
    embeddings = views["embedding"]

    def fit_linear(positions: npt.NDArray[np.int_], _seed: int = SEED) -> Head:
        rows = embeddings[:, positions].reshape(-1, EMBEDDING)
        return fit_head(rows, np.tile(known[positions], plan.views), STRENGTH)

    def fit_deep(positions: npt.NDArray[np.int_], seed: int = SEED) -> Network:
        start = (weights, fit_linear(positions))
        return fine_tune(views[BLOCK_INPUT][:, positions], known[positions], start, plan.schedule, seed)

    everything = np.arange(len(known))
    if version == 1:
        chances = cross_validate(
            known,
            fit_linear,
            lambda fit, view, rows: fit.probabilities(embeddings[view, rows]),
            plan.repeats[1],
            plan.folds,
        )
        head = fit_linear(everything)
    else:
        inputs = views[BLOCK_INPUT]
        chances = cross_validate(
            known, fit_deep, lambda fit, view, rows: predict(fit, inputs[view, rows]), plan.repeats[2], plan.folds
        )
        network = fit_deep(everything)
        weights, head = rounded(weights | network.weights()), tuned_head(network)
    metrics, point, high = measure(known, chances, plan.folds)
    model = build_graph(weights, head.weight, head.bias, cards.RETINOPATHY_PIXELS.size.rows)
    metrics = (*metrics, lesion_metric(options.images, pictures, model, options.threads))
    print(f"retinopathy {version}, operating point {point}, high priority from {high}\n{evaluation.table(metrics)}")
    difference = largest_difference(weights, head, model, graded[:32], cards.RETINOPATHY_PIXELS)
    print(f"  largest difference of a probability, torch against ONNX Runtime: {difference:.1e}")
    if difference > 1e-3:
        raise SystemExit("the graph does not compute what torch does")
    values = cards.retinopathy(
        version=version,
        metrics=metrics,
        point=point,
        high=high,
        sha256=folder_sha256([picture.path for picture in pictures], options.images),
        dvc_hash=dvc_hash(options.images),
    )
    values = marked_quick(values) if options.quick else values
    bundle = write_bundle(
        options.out, values, model, pictures, trained_on=(grades >= 0).tolist(), threads=options.threads
    )
    settings = {
        "seed": SEED,
        "strength": STRENGTH,
        "threads": options.threads,
        "least_sensitivity": LEAST_SENSITIVITY,
        "folds": plan.folds,
        "repeats": plan.repeats[version],
        "views": plan.views,
        "alteration": ALTERATION,
    }
    tuning = {"schedule": plan.schedule} if version == 2 else {}
    log_training(
        options, bundle, settings=settings | tuning, measured={"largest difference of torch and ONNX": difference}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of the photographs and labels.csv")
    parser.add_argument("--out", type=Path, default=Path("models/bundled"), help="where bundles go")
    parser.add_argument("--versions", type=int, nargs="+", choices=(1, 2), default=(1, 2))
    parser.add_argument("--threads", type=int, default=2)
    add_run_options(parser)
    options = parser.parse_args()
    plan = QUICK if options.quick else Plan()
    began = time.monotonic()
    torch.set_num_threads(options.threads)
    paths, grades = few(*read_grades(options.images), plan)
    pictures = read_pictures(paths, cards.RETINOPATHY_PIXELS, "photographs")
    graded = [picture for picture, grade in zip(pictures, grades, strict=True) if grade >= 0]
    wanted = ("embedding", BLOCK_INPUT) if 2 in options.versions else ("embedding",)
    views = view_outputs(graded, wanted, options.threads, plan.views)
    for version in options.versions:
        train(version, pictures, grades, views, options, plan)
    print(f"took {time.monotonic() - began:.0f} s on {options.threads} threads")


if __name__ == "__main__":
    main()
