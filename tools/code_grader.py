"""The graders of datasets/code: this text stands in each of them, before its `grade`.

An answer runs in the process of its grader, so it must not reach the tests beside it: see tree_of.
The sandbox around both keeps it from everything else.
"""

import ast
import collections
import copy
import functools
import itertools
import math
import re
import signal
import sys
import unicodedata

ALLOWED = {
    module.__name__: {name: getattr(module, name) for name in names.split()}
    for module, names in (
        (math, "ceil comb factorial floor fsum gcd inf isclose isqrt lcm pi prod sqrt"),
        (itertools, "accumulate chain combinations pairwise permutations product"),
        (collections, "Counter OrderedDict defaultdict deque"),
        (functools, "cache lru_cache reduce"),
    )
}
BUILTINS = {
    name: getattr(sys.modules["builtins"], name)
    for name in (
        "abs all any bin bool chr dict divmod enumerate filter float frozenset hash hex int "
        "isinstance len list map max min next oct ord pow print range repr reversed round "
        "set slice sorted str sum tuple zip ArithmeticError AssertionError IndexError KeyError "
        "LookupError OverflowError RecursionError StopIteration TypeError ValueError "
        "ZeroDivisionError"
    ).split()
}
MOST_STEPS, MOST_SECONDS = 100_000, 3  # lines and calls of one test; of all tests


class TooLong(BaseException):
    """Out of steps. An answer cannot catch it: this name, and a bare except, are out of reach."""


class Module:
    def __init__(self, names):
        self.__dict__.update(names)


def importing(name, scope=None, inner=None, wanted=(), level=0):
    return Module(ALLOWED[name])


def code_of(text):
    """The code in the answer: what stands in its first fence, or all of it."""
    fence = re.search(r"```(?:python)?[ \t]*\n(.*?)```", text, re.S)
    return unicodedata.normalize("NFKC", fence[1] if fence else text)


def tree_of(code):
    """The answer's tree; None where it is no Python, or has what leads out of its own names:
    double underscores, frames, imports, classes, and what would catch TooLong."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if re.search(r"__|\.\s*(?:mro\b|(?:gi|ag|cr|tb|f|co)_)", code):
        return None
    for node in ast.walk(tree):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module]
        elif isinstance(node, ast.Try) and (
            node.finalbody or not all(h.type for h in node.handlers)
        ):
            return None
        elif isinstance(node, (ast.MatchClass, ast.AsyncFunctionDef, ast.ClassDef)):
            return None
        if not set(modules) <= ALLOWED.keys():
            return None
    return tree


def run(sample, item, tests):
    """{"passed": how many tests, "steps": of all of them}; None where there is no such function."""
    code = code_of(sample["output_text"])
    if tree_of(code) is None:
        return None
    if hasattr(signal, "setitimer"):  # what runs in C has no steps: it ends the process
        signal.setitimer(signal.ITIMER_VIRTUAL, MOST_SECONDS)
    steps = 0

    def count(frame, event, argument):
        nonlocal steps
        steps += 1
        if steps > MOST_STEPS:
            raise TooLong
        return count

    scope, passed = {"__builtins__": BUILTINS | {"__import__": importing}, "__name__": "answer"}, 0
    program = compile(code, "answer", "exec", dont_inherit=True)
    sys.settrace(count)
    try:
        exec(program, scope)
        function = scope[item["function"]]
    except (Exception, TooLong):
        return None
    finally:
        sys.settrace(None)
    total = 0
    for arguments, expected in tests:
        steps, given = 0, copy.deepcopy(arguments)
        sys.settrace(count)
        try:
            value = function(*given)
        except (Exception, TooLong):
            value = None
        finally:
            sys.settrace(None)
        passed += is_same(value, expected)
        total += steps
    return {"passed": passed, "steps": total}


def is_same(value, expected):
    """Equal and of the same type, all the way down: 1 is not True, and no __eq__ is asked."""
    if type(value) is not type(expected):
        return False
    if type(expected) is list:
        return len(value) == len(expected) and all(map(is_same, value, expected))
    return value == expected


def score_tests(sample, item):
    """The share of hidden tests passed, beyond what the best constant answer passes."""
    done = run(sample, item, item["tests"])
    expected = [repr(value) for _, value in item["tests"]]
    constant = max(map(expected.count, expected))
    passed = done["passed"] if done else 0
    return max(0, (passed - constant) / (len(expected) - constant))


def score_edges(sample, item):
    """The share of edge cases passed: empty, one, large."""
    done = run(sample, item, item["edge_tests"])
    return done["passed"] / len(item["edge_tests"]) if done else 0


def score_time(sample, item):
    """1 for a right answer to a large input in a few steps an entry, less for more."""
    done = run(sample, item, [item["time_test"]])
    if not done or not done["passed"]:
        return 0
    arguments = item["time_test"][0]
    size = sum(abs(a) if isinstance(a, int) else len(a) for a in arguments)
    return min(1, (200 + 8 * size) / max(1, done["steps"]))


def score_lint(sample, item):
    """A quarter each: only the function, short lines, every argument used, nothing printed."""
    code = code_of(sample["output_text"])
    tree = tree_of(code)
    defined = [n for n in tree.body if isinstance(n, ast.FunctionDef)] if tree else []
    if [function.name for function in defined] != [item["function"]]:
        return 0
    names = {node.id for node in ast.walk(defined[0]) if isinstance(node, ast.Name)}
    good = [
        all(isinstance(n, (ast.FunctionDef, ast.Import, ast.ImportFrom)) for n in tree.body),
        all(len(line) < 80 for line in code.splitlines()) and ";" not in code,
        {argument.arg for argument in defined[0].args.args} <= names,
        not names & {"print", "input"},
    ]
    return sum(good) / len(good)
