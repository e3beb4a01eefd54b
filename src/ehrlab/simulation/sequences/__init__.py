"""ICD-10 sequences in the shape of RLTF: sixteen cohorts at the paper's prevalences, each with its exact risk.

See docs/simulation_sequences.md.
"""

from ehrlab.simulation.sequences.blocks import SPECIFICATION
from ehrlab.simulation.sequences.layout import write_sequences
from ehrlab.simulation.sequences.oracle import oracle, oracle_table
from ehrlab.simulation.sequences.population import simulate

__all__ = ["SPECIFICATION", "oracle", "oracle_table", "simulate", "write_sequences"]
