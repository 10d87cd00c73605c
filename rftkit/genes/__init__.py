"""The demo task: which gene explains a patient's features? Nothing outside knows what a gene is.

hpo.py           the Human Phenotype Ontology: terms, diseases, genes, straight from its raw files
case.py          one case, its prompt, its row
phenopackets.py  published cases (GA4GH phenopackets) -> cases
cases.py         cases -> train, validation, test rows, split by gene; command_line.py prints it
baselines.py     ranking genes from the annotation alone
simulate.py      cases drawn from the annotation; realistic.py makes them a task folder
mapping.py       a case told in a smaller vocabulary
"""
