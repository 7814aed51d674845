"""Train and bundle the demonstration model ``chest-triage``.

    python scripts/train_chest_triage.py --images ../shared/data/cxr --out models/bundled

`--images` holds ``train/{NORMAL,PNEUMONIA}`` and ``test/{NORMAL,PNEUMONIA}``. Version 1 is a linear head on the
published EfficientNet-Lite0, version 2 has the last blocks fine-tuned. The test folder serves the figures alone. Each
version is a run in MLflow too, see ``--mlflow``.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.model_selection import StratifiedGroupKFold
from training import cards, evaluation
from training.bundle import Head, fit_head, largest_difference, softmax, write_bundle
from training.finetune import Schedule, block_input, fine_tune, tuned_head
from training.graph import build_graph, open_session, run_graph
from training.network import EMBEDDING, Weights, published_weights, rounded
from training.pictures import Alteration, Picture, altered, folder_sha256, read_pictures, to_tensor
from training.runs import add_run_options, log_training, marked_quick

from models.card import Metric
from models.dvc import dvc_hash

SEED = 20
CLASSES = ("NORMAL", "PNEUMONIA")
MOST_REFERENCES = 1000
STRENGTH = 1e-3
ALTERATION = Alteration(rotation_degrees=10, zoom_fraction=0.1, shift_fraction=0.05, flips=False)
SCHEDULE = Schedule(first_block=14, epochs=4, batch=32, rate=2e-4, tuned_share=0.5)
BLOCK_INPUT = block_input(SCHEDULE.first_block)
LEAST_SENSITIVITY = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is done."""

    views: int = 3
    """The image itself and altered copies."""
    held_out_folds: int = 6
    """One in so many persons is held out for the operating point and the reference set."""
    schedule: Schedule = SCHEDULE
    train_a_class: int | None = None
    """At most so many images of a class, every nth; None: all."""
    test_a_class: int | None = None


QUICK = Plan(views=2, held_out_folds=3, schedule=replace(SCHEDULE, epochs=2), train_a_class=110, test_a_class=20)


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """Preprocessed images of one folder."""

    pictures: list[Picture]
    truth: npt.NDArray[np.bool_]
    persons: npt.NDArray[np.int_]


def person_of(path: Path) -> str:
    """Person number in a file name, within the publisher's numbering (``person``, ``IM``, ``NORMAL2-IM``)."""
    found = re.match(r"(person|IM-|NORMAL2-IM-)(\d+)", path.name)
    return found.group(0) if found else path.name


def read_folder(folder: Path, most: int | None) -> Images:
    """Every image below ``folder/NORMAL`` and ``folder/PNEUMONIA``, or `most` of each, evenly taken."""
    paths: list[Path] = []
    for name in CLASSES:
        found = sorted((folder / name).glob("*.jpeg"))
        paths.extend(found if most is None else found[:: max(1, len(found) // most)][:most])
    names = sorted({person_of(path) for path in paths})
    return Images(
        pictures=read_pictures(paths, cards.CHEST_PIXELS, folder.name),
        truth=np.array([path.parent.name == CLASSES[1] for path in paths]),
        persons=np.array([names.index(person_of(path)) for path in paths]),
    )


def split_train(train: Images, test: Images, held_out_folds: int) -> tuple[npt.NDArray[np.int_], npt.NDArray[np.int_]]:
    """Positions to fit on and positions held out, by person; persons whose number occurs in the test folder in neither.

    The publisher counts persons anew in each folder, it seems, but does not say so.
    """
    tested = {person_of(picture.path) for picture in test.pictures}
    free = np.array([index for index, picture in enumerate(train.pictures) if person_of(picture.path) not in tested])
    folds = StratifiedGroupKFold(held_out_folds, shuffle=True, random_state=SEED)
    inside, outside = next(iter(folds.split(free, train.truth[free], train.persons[free])))
    return free[inside], free[outside]


def view_outputs(
    pictures: Sequence[Picture], outputs: Sequence[str], threads: int, views: int
) -> dict[str, npt.NDArray[np.floating[Any]]]:
    """Outputs of the published network for every view of every image, each [V, N, ...].

    What goes into a block is kept as float16: it is large.
    """
    contract = cards.CHEST_PIXELS
    blank = np.zeros((len(CLASSES), EMBEDDING), np.float32)
    model = build_graph(published_weights(), blank, blank[:, 0], contract.size.rows)
    session = open_session(model, threads, also=outputs)
    random = np.random.default_rng(SEED)
    found: dict[str, list[npt.NDArray[np.floating[Any]]]] = {name: [] for name in outputs}
    for view in range(views):
        for start in range(0, len(pictures), 512):
            tensors = [
                to_tensor(picture.values if view == 0 else altered(picture.values, ALTERATION, random), contract)
                for picture in pictures[start : start + 512]
            ]
            part = run_graph(session, tensors, outputs, f"view {view}, from {start}")
            for name, values in part.items():
                found[name].append(values.astype(np.float16) if values.ndim > 2 else values)
    return {
        name: np.concatenate(parts).reshape(views, len(pictures), *parts[0].shape[1:]) for name, parts in found.items()
    }


def scores_of(pictures: list[Picture], weights: Weights, head: Head, threads: int) -> npt.NDArray[np.float64]:
    """Probability of pneumonia by the graph that will be shipped."""
    session = open_session(build_graph(weights, head.weight, head.bias, cards.CHEST_PIXELS.size.rows), threads)
    tensors = [to_tensor(picture.values, cards.CHEST_PIXELS) for picture in pictures]
    return softmax(run_graph(session, tensors, ("logits",), "scores")["logits"])[:, 1]


def measure(
    train: Images,
    test: Images,
    outside: npt.NDArray[np.int_],
    scores: tuple[npt.NDArray[np.float64], ...],
    look: str,
) -> tuple[tuple[Metric, ...], float, float]:
    """Metrics, operating point and score of high priority.

    `scores` are those of the held-out and of the test images; `look` says how often the test folder has been looked at.
    """
    test_name = f"Kermany, test folder, {len(test.pictures)} images"
    held_out, tested = (values[None] for values in scores)
    held_truth = train.truth[outside]
    point = evaluation.operating_point(held_truth, held_out, LEAST_SENSITIVITY)
    high = max(evaluation.high_priority_from(held_truth, held_out, 0.98), round(point + 0.01, 2))
    method, rate_method = f"{look}; bootstrap of persons", f"{look}; Wilson's interval for persons"
    held_name = f"Kermany, {len(outside)} images of held-out persons of the train folder"
    found = [
        evaluation.auc_metric("AUC, pneumonia", test_name, test.truth, tested, test.persons, method),
        evaluation.auc_metric(
            "AUC, pneumonia, held-out persons",
            held_name,
            held_truth,
            held_out,
            train.persons[outside],
            "scored once; bootstrap of persons",
        ),
    ]
    names = np.array([picture.path.name for picture in test.pictures])
    bacterial = np.array(["bacteria" in name for name in names])
    slices = [
        ("sensitivity at the operating point", test.truth),
        ("specificity at the operating point", ~test.truth),
        ("sensitivity, bacterial pneumonia", test.truth & bacterial),
        ("sensitivity, viral pneumonia", test.truth & ~bacterial),
    ]
    correct = (tested >= point) == test.truth
    for name, counted in slices:
        found.append(evaluation.rate_metric(name, test_name, correct[:, counted], test.persons[counted], rate_method))
    return tuple(found), point, high


def train_version(
    version: int,
    images: tuple[Images, Images],
    views: dict[str, npt.NDArray[np.floating[Any]]],
    options: argparse.Namespace,
    plan: Plan,
) -> None:
    """Fit, measure and write the bundle of `version`; `images` are the train and the test folder."""
    train, test = images
    threads = options.threads
    inside, outside = split_train(train, test, plan.held_out_folds)
    held_out = [train.pictures[index] for index in outside]
    truth = train.truth[inside].astype(int)
    weights = published_weights()
    head = fit_head(views["embedding"].reshape(-1, EMBEDDING), np.tile(truth, plan.views), STRENGTH)
    if version == 2:
        network = fine_tune(views[BLOCK_INPUT], truth, (weights, head), plan.schedule, SEED)
        weights, head = rounded(weights | network.weights()), tuned_head(network)
    scores = tuple(scores_of(pictures, weights, head, threads) for pictures in (held_out, test.pictures))
    look = "scored once" if version == 1 else "second look at the test folder"
    metrics, point, high = measure(train, test, outside, scores, look)
    print(f"chest-triage {version}, operating point {point}, high priority from {high}\n{evaluation.table(metrics)}")
    model = build_graph(weights, head.weight, head.bias, cards.CHEST_PIXELS.size.rows)
    difference = largest_difference(weights, head, model, test.pictures[::10], cards.CHEST_PIXELS)
    print(f"  largest difference of a probability, torch against ONNX Runtime: {difference:.1e}")
    if difference > 1e-3:
        raise SystemExit("the graph does not compute what torch does")
    values = cards.chest_triage(
        version=version,
        metrics=metrics,
        point=point,
        high=high,
        counts=(len(inside), len(outside), len(train.pictures) - len(inside) - len(outside)),
        sha256=folder_sha256([picture.path for picture in train.pictures], options.images),
        dvc_hash=dvc_hash(options.images / "train"),
    )
    chosen = np.random.default_rng(SEED).permutation(len(held_out))[:MOST_REFERENCES]
    references = [held_out[index] for index in np.sort(chosen)]
    values = marked_quick(values) if options.quick else values
    trained_on = [False] * len(references)
    bundle = write_bundle(options.out, values, model, references, trained_on=trained_on, threads=threads)
    settings = {
        "seed": SEED,
        "strength": STRENGTH,
        "threads": threads,
        "least_sensitivity": LEAST_SENSITIVITY,
        "held_out_folds": plan.held_out_folds,
        "views": plan.views,
        "alteration": ALTERATION,
    }
    tuning = {"schedule": plan.schedule} if version == 2 else {}
    log_training(
        options, bundle, settings=settings | tuning, measured={"largest difference of torch and ONNX": difference}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder with train and test")
    parser.add_argument("--out", type=Path, default=Path("models/bundled"), help="where bundles go")
    parser.add_argument("--versions", type=int, nargs="+", choices=(1, 2), default=(1, 2))
    parser.add_argument("--threads", type=int, default=2)
    add_run_options(parser)
    options = parser.parse_args()
    plan = QUICK if options.quick else Plan()
    began = time.monotonic()
    torch.set_num_threads(options.threads)
    train = read_folder(options.images / "train", plan.train_a_class)
    test = read_folder(options.images / "test", plan.test_a_class)
    wanted = ("embedding", BLOCK_INPUT) if 2 in options.versions else ("embedding",)
    inside, _ = split_train(train, test, plan.held_out_folds)
    views = view_outputs([train.pictures[index] for index in inside], wanted, options.threads, plan.views)
    for version in options.versions:
        train_version(version, (train, test), views, options, plan)
    print(f"took {time.monotonic() - began:.0f} s on {options.threads} threads")


if __name__ == "__main__":
    main()
