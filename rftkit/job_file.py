"""A fine-tuning job in any shape that people have, in OpenAI's form.

OpenAI's job object, the arguments of `client.fine_tuning.jobs.create` (as JSON, or in a Python
file, which is parsed and never run), `{"method": …}` alone, Azure's flat response_format,
Bedrock's OpenAI-compatible job, and its `rftConfig` (Nova):
https://docs.aws.amazon.com/bedrock/latest/APIReference/API_RFTHyperParameters.html.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rftkit.files import UserError, read_json, read_text, shorten

Record = dict[str, Any]
# What the service adds to a job object, and what has no effect on a trained model.
OF_THE_SERVICE = {
    *("id", "object", "created_at", "finished_at", "fine_tuned_model", "organization_id"),
    *("result_files", "status", "error", "estimated_finish", "trained_tokens", "metadata"),
    *("user_provided_suffix", "usage_metrics", "shared_with_openai", "eval_id", "hyperparameters"),
    *("integrations", "extra_body", "timeout", "jobName", "customModelName", "roleArn"),
    *("outputDataConfig", "customizationType", "clientRequestToken"),
}
NOVA = {  # hyperparameter of an rftConfig -> ours or OpenAI's
    "epochCount": "n_epochs",
    "batchSize": "batch_size",
    "evalInterval": "eval_interval",
    "reasoningEffort": "reasoning_effort",
    "learningRate": "learning_rate",
    "trainingSamplePerPrompt": "answers_per_prompt",
    "inferenceMaxTokens": "max_completion_tokens",
    "maxPromptLength": "max_prompt_tokens",
}


def is_job(file: str | Path) -> bool:
    """Is this a job, and no RunConfig, whose `method` is a string?"""
    if str(file).endswith(".py"):
        return True
    record = read_json(file)
    known = record if isinstance(record, dict) else {}
    return isinstance(known.get("method"), dict) or "customizationConfig" in known


def read_job(file: str | Path) -> Record:
    """The job in OpenAI's form: the arguments of jobs.create."""
    job = call_arguments(file) if str(file).endswith(".py") else part({file: read_json(file)}, file)
    if "customizationConfig" in job:
        job = from_nova(job)
    for name in ("model", "training_file", "validation_file", "suffix"):
        if not isinstance(job.get(name), str | None):
            raise UserError(f"{file}: {name}: {shorten(job[name])}, expected text: correct it")
    method = part(job, "method")
    if method.get("type", "reinforcement") != "reinforcement" or "reinforcement" not in method:
        found = method.get("type") or "missing"
        raise UserError(f"{file}: method {found!r}, expected type and reinforcement: see its docs")
    return job


def part(record: Record, *keys: Any) -> Record:
    """The object at these keys, {} where there is none; UserError where it is no object."""
    for key in keys:
        record = record.get(key) or {}
        if not isinstance(record, dict):
            raise UserError(f"{key}: {shorten(record)}, expected an object: correct it")
    return record


def from_nova(job: Record) -> Record:
    """Bedrock's arguments of create_model_customization_job in OpenAI's form."""
    config = part(job, "customizationConfig", "rftConfig")
    known = {NOVA.get(k, k): value for k, value in part(config, "hyperParameters").items()}
    lambda_arn = part(config, "graderConfig", "lambdaGrader").get("lambdaArn")
    grader = {"type": "lambda", "lambda": {"function": lambda_arn}}
    held_out = dict(enumerate(part(job, "validationDataConfig").get("validators") or []))
    rest = {key: value for key, value in job.items() if key in OF_THE_SERVICE}
    return rest | {
        "model": job.get("baseModelIdentifier"),
        "training_file": part(job, "trainingDataConfig").get("s3Uri"),
        "validation_file": part(held_out, 0).get("s3Uri"),
        "method": {
            "type": "reinforcement",
            "reinforcement": {"grader": grader, "hyperparameters": known},
        },
    }


def call_arguments(file: str | Path) -> Record:
    """The arguments of the one call of fine_tuning.jobs.create in a Python file, from its syntax
    tree. Names stand for what the file assigns to them, an upload for the file that it opens."""
    try:
        tree = ast.parse(read_text(file))
    except SyntaxError as error:
        raise UserError(f"{file}:{error.lineno}: not Python ({error.msg}): correct it") from None
    nodes = list(ast.walk(tree))
    calls = [n for n in nodes if isinstance(n, ast.Call)]
    jobs = [n for n in calls if ast.unparse(n.func).endswith("fine_tuning.jobs.create")]
    if len(jobs) != 1:
        raise UserError(f"{file}: {len(jobs)} calls of jobs.create, expected one: keep one")
    assigned = [(t, n.value) for n in nodes if isinstance(n, ast.Assign) for t in n.targets]
    assigned += [(n.target, n.value) for n in nodes if isinstance(n, ast.AnnAssign) and n.value]
    assigned += [(n.optional_vars, n.context_expr) for n in nodes if isinstance(n, ast.withitem)]

    def meaning(node: ast.AST) -> ast.expr | None:
        """What a name was last assigned before its use: so `grader = grader` has an end."""
        if not isinstance(node, ast.Name):
            return None
        use = (node.lineno, node.col_offset)
        made = [v for target, v in assigned if getattr(target, "id", None) == node.id]
        made = [v for v in made if (v.end_lineno, v.end_col_offset) <= use]
        return max(made, key=lambda v: v.end_lineno, default=None)

    def merged(pairs: Iterable[tuple[Any, ast.expr]]) -> Record:
        result: Record = {}
        for key, node in pairs:  # without a key: **
            result |= part({"**": value(node)}, "**") if key is None else {key: value(node)}
        return result

    def value(node: ast.expr) -> Any:
        if made := meaning(node):
            return value(made)
        if isinstance(node, ast.Attribute) and (opened := opened_file(node.value)):
            return opened  # train.id, where train = client.files.create(file=open(…))
        if isinstance(node, ast.Dict):
            return merged((key and value(key), v) for key, v in zip(node.keys, node.values))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "dict" and not node.args:
            return merged((keyword.arg, keyword.value) for keyword in node.keywords)
        if isinstance(node, ast.List | ast.Tuple):
            return [value(element) for element in node.elts]
        try:
            return ast.literal_eval(node)
        except ValueError:
            place = f"{file}:{node.lineno}: {shorten(ast.unparse(node), 40)}"
            raise UserError(f"{place} is computed: write its value there") from None

    def opened_file(node: ast.expr) -> str | None:
        for inner in ast.walk(meaning(node) or node):
            if isinstance(inner, ast.Call) and ast.unparse(inner.func) in ("open", "Path"):
                return str(value(inner.args[0]))
            if meaning(inner) and (opened := opened_file(inner)):
                return opened
        return None

    return merged((keyword.arg, keyword.value) for keyword in jobs[0].keywords)
