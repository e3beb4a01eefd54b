"""Codes that fill ordinary records, the commonest first, and the drugs by name."""

from __future__ import annotations

# ICD-10-CM, on top of the background.
_DIAGNOSES = """
Z00.00 I10 Z23 Z79.899 M54.50 Z12.31 E03.9 F41.9 F32.A M25.561 M25.562 G47.33 E55.9 Z12.11 R51.9 F41.1 M79.7 N40.0
Z01.419 H25.13 L57.0 M81.0 Z71.3 D22.5 J30.9 K59.00 R53.83 M54.2 Z20.822 L82.1 B35.1 M19.90 M54.16 Z86.010 G43.909
R10.9 R60.0 R06.09 N20.0 K64.9 Z11.59 Z12.4 H04.123 L30.9 M10.9 D50.9 E53.8 F33.1 F17.200 Z13.220 Z72.0 J02.9 J01.90
R05.3 M79.671 M25.511 Z02.89 R30.0 S93.401A I87.2 I73.9 Z46.1 H26.9 H35.30 G62.9 G89.29 H52.4 R63.4 D64.9 R13.10
M17.12 M16.11 L70.0 N95.1 H40.9 H90.3 H61.23 M62.81 G47.00 F90.9 Z51.11 C50.919 C61 N18.2 R31.9 B37.0 L40.0 K76.0
"""
DIAGNOSES = tuple(_DIAGNOSES.split())

# CPT and HCPCS: laboratory, imaging, therapy, vaccination, office procedures.
_SERVICES = """
36415 80053 85025 84443 81001 81003 77067 90471 90686 97110 97140 96372 20610 99214 99203 99204 99212 99211 99215
92014 92012 92134 98941 98940 G0439 G0438 G0008 G0009 J1885 J3301 J1100 J2405 J0696 J3420 J1030 11042 11102 11721
17000 17110 69210 73030 73130 73562 73630 72100 72148 72070 74177 74176 76700 76830 76856 77080 77063 84153 82306
82607 82728 83540 83550 84439 84436 84480 84550 82043 82570 82947 82962 83735 84100 85610 85730 85652 86140 86803
87086 87186 87491 87591 87624 87804 87880 88305 88175 88342 90732 90715 90750 90670 90658 90834 90837 90791 90832
93971 93970 94010 94640 94760 95004 95165 95886 95910 96365 96361 96374 96413 97112 97530 97161 97162 97014 97035
99396 99395 99397 99495 99496 A4253 E0601 E0431 Q2038 G0103 G0283 G0463 G0299 G0151 66984 29881 64483 62323 45380
45385 43235 52000 58558 19083 12001 10060 20552 20553 11056 11200 17003 17311 92015 92250 92083 92557 92507
"""
SERVICES = tuple(_SERVICES.split())

# A place of service's own CPT code.
EVALUATIONS = {"AMB": "99213", "EMER": "99284", "IMP": "99223", "OBSENC": "99219", "VR": "99441"}

# RxNorm ingredient -> identifier.
DRUGS = {
    "lisinopril": "29046",
    "levothyroxine": "10582",
    "acetaminophen": "161",
    "amlodipine": "17767",
    "gabapentin": "25480",
    "sertraline": "36437",
    "hydrochlorothiazide": "5487",
    "losartan": "52175",
    "prednisone": "8640",
    "metoprolol": "6918",
    "ibuprofen": "5640",
    "cetirizine": "20610",
    "tramadol": "10689",
    "trazodone": "10737",
    "escitalopram": "321988",
    "bupropion": "42347",
    "fluoxetine": "4493",
    "citalopram": "2556",
    "duloxetine": "72625",
    "venlafaxine": "39786",
    "cyclobenzaprine": "21949",
    "meloxicam": "41493",
    "tamsulosin": "77492",
    "allopurinol": "519",
    "triamcinolone": "10759",
    "fluticasone": "41126",
    "montelukast": "88249",
    "loratadine": "28889",
    "diphenhydramine": "3498",
    "methylprednisolone": "6902",
    "dexamethasone": "3264",
    "ciprofloxacin": "2551",
    "levofloxacin": "82122",
    "doxycycline": "3640",
    "clindamycin": "2582",
    "metronidazole": "6922",
    "nitrofurantoin": "7454",
    "carvedilol": "20352",
    "propranolol": "8787",
    "hydralazine": "5470",
    "captopril": "1998",
    "digoxin": "3407",
    "lorazepam": "6470",
    "alprazolam": "596",
    "clonazepam": "2598",
    "diazepam": "3322",
    "zolpidem": "39993",
    "quetiapine": "51272",
    "aripiprazole": "89013",
    "risperidone": "35636",
    "olanzapine": "61381",
    "mirtazapine": "15996",
    "amitriptyline": "704",
    "nortriptyline": "7531",
    "paroxetine": "32937",
    "lamotrigine": "28439",
    "carbamazepine": "2002",
    "phenytoin": "8183",
    "methylphenidate": "6901",
    "atomoxetine": "38400",
    "celecoxib": "140587",
    "diclofenac": "3355",
    "codeine": "2670",
    "morphine": "7052",
    "fentanyl": "4337",
    "methadone": "6813",
    "ondansetron": "26225",
    "metoclopramide": "6915",
    "esomeprazole": "283742",
    "lansoprazole": "17128",
    "mesalazine": "52582",
    "methotrexate": "6851",
    "hydroxychloroquine": "5521",
    "azathioprine": "1256",
    "tacrolimus": "42316",
    "sildenafil": "136411",
    "tolterodine": "119565",
    "latanoprost": "43611",
    "timolol": "10600",
    "budesonide": "19831",
    "donepezil": "135447",
    "alendronate": "46041",
    "docusate": "82003",
    "heparin": "5224",
    "lidocaine": "6387",
    "midazolam": "6960",
    "glimepiride": "25789",
    "pravastatin": "42463",
    "terbinafine": "37801",
    "tamoxifen": "10324",
    "ferrous sulfate": "24947",
    # shown by blocks alone
    "albuterol": "435",
    "amoxicillin": "723",
    "apixaban": "1364430",
    "aspirin": "1191",
    "atorvastatin": "83367",
    "azithromycin": "18631",
    "cefazolin": "2180",
    "ceftriaxone": "2193",
    "cephalexin": "2231",
    "clopidogrel": "32968",
    "folic acid": "4511",
    "furosemide": "4603",
    "glipizide": "4821",
    "insulin glargine": "274783",
    "metformin": "6809",
    "naproxen": "7258",
    "nitroglycerin": "4917",
    "norepinephrine": "7512",
    "omeprazole": "7646",
    "oxycodone": "7804",
    "pantoprazole": "40790",
    "piperacillin": "8339",
    "potassium chloride": "8591",
    "rosuvastatin": "301542",
    "salmeterol": "36117",
    "simvastatin": "36567",
    "spironolactone": "9997",
    "tiotropium": "69120",
    "vancomycin": "11124",
    "warfarin": "11289",
}
