"""A sweep's second objective: captions by the refined embeddings of the most likely trials.

Likelihood comes first. Where the measurement does not tell trials apart from the most likely one, captions decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from raycap import storage
from raycap.batch.evaluate import EvaluateConfig, run_evaluation
from raycap.batch.evaluate_stages import Variant
from raycap.batch.pool import require_room
from raycap.batch.token_likelihood import RbmLikelihood
from raycap.checkpoint.identity import encoder_fingerprint
from raycap.checkpoint.pretrained import load_blip
from raycap.data.features import open_store
from raycap.data.rows import open_rows
from raycap.progress import say
from raycap.report.html import write_report
from raycap.sweep.config import CaptionObjective, SweepConfig
from raycap.sweep.results import FinishedTrial

METRIC = "cider"
_FOLDER = "captions"
_STANDARD_ERRORS = 2


@dataclass(frozen=True)
class Captioned:
    """A trial, its likelihood measured anew, and its captions' score at each gate.

    Args:
        number: of the trial among all, the most likely first.
        lead: of the most likely candidate over this one, in nats per token, and its standard error.
        gates: ``gate``, ``score`` and ``difference`` to plain BLIP, each of these two value, low and high.
    """

    number: int
    trial: FinishedTrial
    likelihood: RbmLikelihood
    lead: tuple[float, float]
    gates: tuple[dict[str, Any], ...]

    @property
    def as_likely(self) -> bool:
        """Whether the most likely candidate is not shown to be more likely."""
        difference, error = self.lead
        return difference <= _STANDARD_ERRORS * error

    @property
    def best(self) -> dict[str, Any]:
        """The gate with the highest score."""
        return max(self.gates, key=lambda found: found["score"]["value"])

    def scored(self) -> FinishedTrial:
        """The trial with its captions' score in its result."""
        difference = self.best["difference"]
        found = {"best_gate": self.best["gate"], METRIC: self.best["score"]["value"]}
        found |= {f"{METRIC}_difference": difference["value"]}
        found |= {f"{METRIC}_difference_{end}": difference[end] for end in ("low", "high")}
        return replace(self.trial, result=self.trial.result | found)

    def metrics(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "settings": self.trial.settings,
            "model": self.trial.result["model"],
            "log_likelihood": float(self.likelihood.per_image.mean()),
            "log_likelihood_behind": self.lead[0],
            "log_likelihood_behind_error": self.lead[1],
            "as_likely": self.as_likely,
            "best_gate": self.best["gate"],
            "gates": self.gates,
        }


def check_captions(config: SweepConfig, objective: CaptionObjective) -> None:
    """See before any trial that the candidates can be captioned.

    Raises:
        UserError: rows or model are missing, the store is another encoder's, or the cluster has no room.
    """
    open_rows(objective.rows, "captions.rows").chunks(objective.split, "captions.split")
    encoder, decoder = load_blip(objective.model, "captions.model")
    decoder.require_room(objective.decoding)
    open_store(config.features, "base.task.features.path", encoder_fingerprint(encoder))
    require_room(_evaluation(config, objective, {}))


def caption_trials(
    config: SweepConfig,
    objective: CaptionObjective,
    candidates: Sequence[tuple[int, FinishedTrial, RbmLikelihood]],
) -> tuple[list[Captioned], dict[str, Any]]:
    """Caption each candidate at each gate, plain BLIP beside them; what an interrupted sweep captioned is kept.

    ``output``/captions gets what jobs/evaluate.py writes.

    Args:
        candidates: number, trial and likelihood of each.

    Returns:
        the candidates in their order, and metrics of all of them.
    """
    evaluation = _evaluation(config, objective, {number: trial for number, trial, _ in candidates})
    found = _evaluate_once(evaluation)
    corruption = objective.corruptions[0].name
    most_likely = max((likelihood for *_, likelihood in candidates), key=lambda found: found.per_image.mean())
    captioned = []
    for number, trial, likelihood in candidates:
        gates = []
        for gate in objective.gates:
            group = found["scores"][corruption], found["differences"][corruption]
            score, difference = (values[_variant(number, gate)][METRIC] for values in group)
            gates.append({"gate": gate, "score": score, "difference": difference})
        captioned.append(Captioned(number, trial, likelihood, most_likely.lead(likelihood), tuple(gates)))
    return captioned, {
        "metric": METRIC,
        "corruption": corruption,
        "split": objective.split,
        "num_images": found["num_images"],
        "plain": found["scores"][corruption]["plain"][METRIC],
        "candidates": [candidate.metrics() for candidate in captioned],
    }


def choose_by_captions(candidates: Sequence[Captioned]) -> Captioned:
    """Of the candidates as likely as the most likely one, the one with the best captions."""
    return max((found for found in candidates if found.as_likely), key=lambda found: found.best["score"]["value"])


def _evaluate_once(evaluation: EvaluateConfig) -> dict[str, Any]:
    uri = storage.join(evaluation.output, "metrics.json")
    if storage.exists(uri):
        noted: dict[str, Any] = storage.read_json(uri)
        # Trials that were lost before may be there now, and be other candidates.
        if noted["refiners"] == evaluation.refiners:
            say(f"sweep: {evaluation.output} has the captions of these trials already")
            return noted
    metrics, report = run_evaluation(evaluation)
    write_report(storage.join(evaluation.output, "report.html"), report)
    storage.write_json(uri, metrics)
    return metrics


def _evaluation(config: SweepConfig, objective: CaptionObjective, trials: dict[int, FinishedTrial]) -> EvaluateConfig:
    """What jobs/evaluate.py takes to caption these trials, each by its number."""
    variants = [Variant(name="plain", gate=0)]
    for number in trials:
        variants += [Variant(name=_variant(number, g), gate=g, refiner=_refiner(number)) for g in objective.gates]
    shared = objective.model_dump(exclude={"candidates", "gates"})
    return EvaluateConfig(
        **shared,
        output=storage.join(config.output, _FOLDER),
        title="Captions of the most likely trials",
        refiners={_refiner(number): trial.result["model"] for number, trial in trials.items()},
        variants=tuple(variants),
        use_gpu=config.use_gpu,
        java=False,  # nothing is chosen by it
    )


def _refiner(number: int) -> str:
    return f"trial{number}"


def _variant(number: int, gate: float) -> str:
    return f"trial{number}_gate{gate:g}"
