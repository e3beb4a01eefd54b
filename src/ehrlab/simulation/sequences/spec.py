"""What the sequence population is made of: hidden blocks, what each shows at a visit, and a visit process apart.

A patient is a set of independent hidden chains (blocks) of two to five states with weekly moves. Visits depend on a
static frailty alone. At a visit a block shows context codes (signals) and target codes, with probabilities that depend
on its state; a target that has occurred once returns with a fixed probability, whatever the state. So blocks factorise
given the record, and every posterior is an exact forward filter over at most five states.

Codes are written as `R50.9` (ICD-10-CM), `pcs:5A1945Z` (ICD-10-PCS), `cpt:99291` (CPT or HCPCS) and `drug:folic_acid`
(an RxNorm ingredient of `commons.DRUGS`). Rates and probabilities are per week unless said otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

PLACES = ("AMB", "EMER", "IMP", "OBSENC", "VR")  # TriNetX: ambulatory, emergency, inpatient, observation, virtual


@dataclass(frozen=True)
class Signal:
    """Context codes of a block: at a visit one of them is coded with a probability that depends on the state."""

    name: str
    coded: tuple[float, ...]  # P(coded at a visit | state); misses and false positives included
    codes: tuple[str, ...]  # the commonest first
    in_hospital: bool = False  # seen more often at inpatient and emergency encounters


@dataclass(frozen=True)
class Target:
    """One cohort of RLTF Table 4."""

    cohort: str
    name: str  # as the paper prints it
    prevalence: float  # share of patients with at least one of the codes in their record
    relative: tuple[float, ...]  # P(first coded at a visit | state), relative to the highest
    at_visit: float  # x relative; solved from `prevalence` by `chain.solve`
    again: float  # P(coded at a later visit), whatever the state
    codes: tuple[str, ...]  # the paper's, dotted, the commonest first
    in_hospital: bool = False

    @property
    def coded(self) -> tuple[float, ...]:
        """P(first coded at a visit | state)."""
        return tuple(self.at_visit * r for r in self.relative)


@dataclass(frozen=True)
class Block:
    """A hidden weekly chain. State 0 is healthy; the higher the index, the worse."""

    name: str
    states: tuple[str, ...]
    moves: tuple[tuple[int, int, float], ...]  # from, to, probability; the rest stays
    signals: tuple[Signal, ...]
    targets: tuple[Target, ...]
    risk: str = "age"  # what sets the risk class: "age" (the band) or "race" (0 = other, 1 = black)
    worsening: tuple[float, ...] = (0.55, 1.0, 1.7)  # x moves to a higher state, by risk class
    congenital: tuple[float, ...] = (0.0, 0.0, 0.0)  # P(born in state 1), by risk class


@dataclass(frozen=True)
class Background:
    """Codes that mean nothing: a visit's slots are filled from the patient's own codes or from a Zipf law."""

    slots: float  # mean number per visit, beyond `least`; geometric
    least: int
    own: int  # habitual codes of a patient; 0: none
    habit: float  # P(a slot repeats one of them)
    zipf: tuple[float, float]  # exponent, offset of the rank


@dataclass(frozen=True)
class Spec:
    """A population of sequences."""

    blocks: tuple[Block, ...]
    weeks: int = 156  # length of a record, unless `max_visits` end it earlier
    max_visits: int = 48  # RLTF appendix: the maximal number of visits
    # demography
    age_bands: tuple[tuple[int, int], ...] = ((18, 39), (40, 64), (65, 88))  # years at entry, uniform within a band
    age_share: tuple[float, ...] = (0.30, 0.38, 0.32)
    female: float = 0.54
    race_share: tuple[float, ...] = (0.66, 0.13, 0.05, 0.11, 0.05)  # in the order of simulation.spec.RACES
    # care: P(a visit this week), by frailty. The first week has a visit by rule.
    frailty_share: tuple[float, ...] = (0.35, 0.40, 0.25)
    visit: tuple[float, ...] = (0.06, 0.12, 0.26)
    burn_in_weeks: int = 520  # the chains run for ten years before the record begins
    # background: diagnoses, CPT/HCPCS, ICD-10-PCS, drugs
    vocabulary_size: int = 7_954  # RLTF appendix
    num_procedures: int = 700  # background ICD-10-PCS codes
    diagnoses: Background = Background(slots=1.05, least=1, own=10, habit=0.6, zipf=(1.0, 10.0))
    services: Background = Background(slots=0.3, least=0, own=0, habit=0.0, zipf=(1.0, 4.0))
    procedures: Background = Background(slots=0.02, least=0, own=0, habit=0.0, zipf=(0.8, 10.0))
    drugs: Background = Background(slots=0.5, least=0, own=5, habit=0.75, zipf=(0.9, 5.0))
    # P(place | a code of hospital care is at the visit), P(place | none is): places tell nothing that codes do not
    place_share: tuple[tuple[float, ...], ...] = ((0.86, 0.05, 0.02, 0.02, 0.05), (0.15, 0.27, 0.48, 0.10, 0.0))
    evaluated: float = 0.4  # P(the place's own CPT code is at the visit)

    @property
    def targets(self) -> tuple[Target, ...]:
        """All targets, block after block: the order of every array over targets."""
        return tuple(target for block in self.blocks for target in block.targets)

    def risk_share(self, block: Block) -> tuple[float, ...]:
        """Share of each risk class in the population."""
        if block.risk == "age":
            return self.age_share
        black = self.race_share[1]
        return (1.0 - black, black)
