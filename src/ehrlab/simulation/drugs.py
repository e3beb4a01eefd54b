"""The drugs that simulated patients get, as both layouts write them.

RxNorm ingredient identifiers are those of the National Library of Medicine (public domain).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Drug:
    name: str  # RxNorm ingredient
    title: str  # as an order system writes it
    rxnorm: str
    dose: str
    unit: str
    form: str
    route: str


DRUGS = (
    Drug("lisinopril", "Lisinopril", "29046", "10", "mg", "TAB", "PO"),
    Drug("atorvastatin", "Atorvastatin", "83367", "40", "mg", "TAB", "PO"),
    Drug("gabapentin", "Gabapentin", "25480", "300", "mg", "CAP", "PO"),
    Drug("sertraline", "Sertraline", "36437", "50", "mg", "TAB", "PO"),
    Drug("albuterol", "Albuterol 0.083% Neb Soln", "435", "1", "NEB", "NEB", "IH"),
    Drug("levothyroxine", "Levothyroxine Sodium", "10582", "75", "mcg", "TAB", "PO"),
    Drug("aspirin", "Aspirin", "1191", "81", "mg", "TAB", "PO"),
    Drug("warfarin", "Warfarin", "11289", "5", "mg", "TAB", "PO"),
    Drug("omeprazole", "Omeprazole", "7646", "20", "mg", "CAP", "PO"),
    Drug("ferrous sulfate", "Ferrous Sulfate", "24947", "325", "mg", "TAB", "PO"),
    Drug("alendronate", "Alendronate Sodium", "46041", "70", "mg", "TAB", "PO"),
    Drug("furosemide", "Furosemide", "4603", "40", "mg", "TAB", "PO"),
    Drug("metoprolol", "Metoprolol Tartrate", "6918", "25", "mg", "TAB", "PO"),
    Drug("allopurinol", "Allopurinol", "519", "100", "mg", "TAB", "PO"),
    Drug("tiotropium", "Tiotropium Bromide", "69120", "1", "CAP", "CAP", "IH"),
    Drug("donepezil", "Donepezil", "135447", "5", "mg", "TAB", "PO"),
    Drug("acetaminophen", "Acetaminophen", "161", "650", "mg", "TAB", "PO"),
    Drug("heparin", "Heparin", "5224", "5000", "UNIT", "mL", "SC"),
    Drug("docusate", "Docusate Sodium", "82003", "100", "mg", "CAP", "PO"),
    Drug("ondansetron", "Ondansetron", "26225", "4", "mg", "VIAL", "IV"),
)
INDEX = {drug.name: i for i, drug in enumerate(DRUGS)}
