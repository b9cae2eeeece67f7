"""The verdicts of bfcl-eval's own checker on its own data.

For each row of the categories that are judged by one answer this prints a JSON line: the row with its allowed answers, and lists of calls with
the checker's verdict on them. The calls are such as the answers allow, and those changed in many ways: parts missing, added, of another type,
of another value, in another order, and several such changes at once.
"""

import copy
import json
import random
import sys
import types
from pathlib import Path

# The checker asks this table one thing of a model: whether dots in functions' names are underscores. The module that holds it imports the
# client library of every provider, so a table with the two possible answers takes its place.
table = types.ModuleType("bfcl_eval.constants.model_config")
table.MODEL_CONFIG_MAPPING = {
    "dots": types.SimpleNamespace(underscore_to_dot=False),
    "underscores": types.SimpleNamespace(underscore_to_dot=True),
}
sys.modules["bfcl_eval.constants.model_config"] = table

import bfcl_eval
from bfcl_eval.constants.enums import Language
from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker
from bfcl_eval.eval_checker.ast_eval.type_convertor.java_type_converter import java_type_converter
from bfcl_eval.eval_checker.ast_eval.type_convertor.js_type_converter import js_type_converter
from bfcl_eval.utils import is_empty_output, is_function_calling_format_output

DATA = Path(bfcl_eval.__file__).parent / "data"
CATEGORIES = [
    "simple_python", "simple_java", "simple_javascript", "multiple", "parallel", "parallel_multiple",
    "live_simple", "live_multiple", "live_parallel", "live_parallel_multiple",
]
WITHOUT_ANSWERS = ["irrelevance", "live_irrelevance", "live_relevance"]


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def language(category):
    return {"simple_java": Language.JAVA, "simple_javascript": Language.JAVASCRIPT}.get(category, Language.PYTHON)


# Calls that the answers allow.


def choose(allowed, at):
    """The at-th allowed value, counted round; of objects, that of each member."""
    if isinstance(allowed, list) and allowed:
        return inner(allowed[at % len(allowed)], at)
    return inner(allowed, at)


def inner(value, at):
    if isinstance(value, dict):
        return {k: choose(v, at) for k, v in value.items() if not (isinstance(v, list) and choose_empty(v, at))}
    if isinstance(value, list):
        return [inner(v, at) if isinstance(v, dict) else v for v in value]
    return value


def choose_empty(values, at):
    return bool(values) and values[at % len(values)] == ""


def literal(value, kind, items, java):
    """A value as Java or JavaScript writes it; what is a string in the answers may be code already."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"{value}L" if kind == "long" else f"{value}n" if kind == "Bigint" else str(value)
    if isinstance(value, float):
        return f"{value}f" if kind == "float" and java else str(value)
    if isinstance(value, list):
        parts = ", ".join(element(v, items, java) for v in value)
        if not java:
            return f"[{parts}]"
        return f"new Object[]{{{parts}}}" if kind == "Array" else f"new ArrayList<Object>(Arrays.asList({parts}))"
    if isinstance(value, dict):
        if not java:
            return "{" + ", ".join(f"{k}: {element(v, None, java)}" for k, v in value.items()) + "}"
        puts = " ".join(f'put("{k}", {element(v, None, java)});' for k, v in value.items())
        return f"new HashMap<String, Object>() {{{{ {puts} }}}}"
    return str(value)


def element(value, items, java):
    return f'"{value}"' if isinstance(value, str) else literal(value, items, None, java)


def variants(value, kind, items, java):
    """Other ways to write the same, and near misses."""
    plain = literal(value, kind, items, java)
    yield plain
    yield f'"{plain}"'
    yield f"'{plain}'"
    yield f" {plain} "
    yield plain + "\n"
    for suffix in "fFlLn":
        yield plain + suffix
    yield plain.rstrip("fFlLn")
    yield plain + ".0"
    yield plain + "e2"
    yield plain.replace(", ", ",")
    yield plain.replace(", ", " ,\n ")
    yield plain.replace("{{", "{").replace("}}", "}")
    yield plain.replace("{{", "{ {").replace("}}", "} }")
    yield plain.replace("new ", "new  \t")
    yield plain.replace("<Object>", "<>").replace("<String, Object>", "<>")
    yield plain.replace("<Object>", "<List<String>>")
    yield f"x = {plain};"
    yield plain[:-1]
    yield plain[1:]
    yield plain + plain
    if isinstance(value, list):
        parts = [element(v, items, java) for v in value]
        adds = " ".join(f"add({p});" for p in parts)
        yield f"new ArrayList<String>() {{{{ {adds} }}}}"
        yield f"new ArrayList<String>() {{{{{adds}}}}}"
        yield "new ArrayList<String>() {{ }}"
        yield "new ArrayList<String>()"
        yield f"new int[] {{{','.join(parts)}}}"
        yield f"new Array({', '.join(parts)})"
        yield f"[[{', '.join(parts)}], [{', '.join(parts)}]]"
        yield f"new Array([{', '.join(parts)}] , [ {', '.join(parts)} ])"
        yield f"[ [{', '.join(parts)} ]]"
        yield f"[ [{', '.join(parts)} ], 5]"
        yield "[]"
        yield "[[]]"
        yield "[" + ", ".join(f"'{v}'" for v in value) + "]"
    if isinstance(value, dict):
        yield "{}"
        yield "new HashMap<>()"
        yield "new HashMap<String, Object>() {}"
        yield json.dumps(value)
        yield "{" + ",".join(f"'{k}':'{v}'" for k, v in value.items()) + "}"
        yield "{" + " , ".join(f'"{k}" : [{element(v, None, java)}]' for k, v in value.items()) + "}"
        yield "{" + ", :".join(f"{k}:{v}" for k, v in value.items()) + "}"


# Changes.


def wrong_values(value):
    """Values that are near a value, of its type and of others."""
    yield from (None, True, False, 0, 1, -1, 0.0, 1.0, "", "x", [], {}, [value], {"a": value}, 10**30, -(10**30), 1e300, 2**53 + 1)
    if isinstance(value, bool):
        yield from (not value, int(value), float(value), str(value), str(value).lower())
    elif isinstance(value, int):
        yield from (value + 1, -value, float(value), value + 0.5, str(value), f"{value}.0", bool(value))
    elif isinstance(value, float):
        yield from (value + 1, value * 2, value + 1e-12, -value, int(value), str(value), round(value))
    elif isinstance(value, str):
        yield from (value + "x", value[1:], value.upper(), value.lower(), f" {value} ", f"{value}.", value.replace(" ", ""), value.title())
        yield from (value.replace(" ", ", "), value.replace("-", "/"), value.replace("'", '"'), value.replace('"', "'"), value[::-1], f"{value}!")
        yield from ("*".join(value[:40]), value.replace(" ", "\t"), value.replace(" ", "\u00a0"), value.swapcase(), f"({value})", value * 2)
        yield from (value.replace("ss", "ß"), value.replace("s", "ſ"), value.replace("i", "İ"), value.replace("e", "é"))
        for convert in (int, float):
            try:
                yield convert(value)
            except ValueError:
                pass
    elif isinstance(value, list):
        yield from (value[::-1], value[:-1], value[1:], value + value[:1], value + [None], value * 2, [value, value], sorted(value, key=str))
        yield from ([str(v) for v in value], [v for v in value if v], {str(i): v for i, v in enumerate(value)}, ",".join(map(str, value)))
        for i, v in enumerate(value[:3]):
            for w in wrong_values(v):
                yield value[:i] + [w] + value[i + 1 :]
    elif isinstance(value, dict):
        yield from (dict(reversed(value.items())), list(value), list(value.values()), json.dumps(value), {**value, "extra": 1}, {**value, "": ""})
        for k, v in list(value.items())[:4]:
            yield {key: other for key, other in value.items() if key != k}
            yield {(key + "_" if key == k else key): other for key, other in value.items()}
            for w in wrong_values(v):
                yield {**value, k: w}


def changed_arguments(arguments, allowed, rng, shrink):
    for name in arguments:
        yield {k: v for k, v in arguments.items() if k != name}
        yield {(k.upper() if k == name else k): v for k, v in arguments.items()}
        wrong = list(wrong_values(arguments[name]))
        for value in rng.sample(wrong, min(shrink, len(wrong))):
            yield {**arguments, name: value}
    for name in allowed:
        if name not in arguments:
            for value in ("", None, 1, "x", [], True):
                yield {**arguments, name: value}
    yield {**arguments, "unexpected": 1}
    yield {}
    yield dict(reversed(arguments.items()))


def cases(category, answers, functions, rng):
    """Lists of calls as [name, arguments] pairs."""
    java = language(category) == Language.JAVA
    shrink = 8 if category in ("live_multiple", "live_parallel_multiple", "parallel_multiple") else 14

    def call(answer, at):
        (name, allowed), = answer.items()
        return [name, {k: choose(v, at) for k, v in allowed.items() if not (isinstance(v, list) and choose_empty(v, at))}]

    bases = [[call(answer, at) for answer in answers] for at in range(4)]
    # Everything that may be left out is.
    shortest = []
    for answer in answers:
        (name, allowed), = answer.items()
        shortest.append([name, {k: choose(v, 0) for k, v in allowed.items() if "" not in v}])
    bases.append(shortest)
    if language(category) != Language.PYTHON:
        properties = functions[0]["parameters"]["properties"]
        for base in list(bases):
            for name, value in base[0][1].items():
                kind, items = properties[name]["type"], properties[name].get("items", {}).get("type")
                written = {k: literal(v, properties[k]["type"], properties[k].get("items", {}).get("type"), java) for k, v in base[0][1].items()}
                yield [[base[0][0], written]]
                for variant in variants(value, kind, items, java):
                    yield [[base[0][0], {**written, name: variant}]]
    yield from bases
    base = bases[0]
    # Names, counts and order.
    for i, (name, arguments) in enumerate(base):
        for other in (name + "_", name.upper(), name.replace(".", "_"), name.split(".")[-1], "", functions[-1]["name"], functions[0]["name"]):
            yield base[:i] + [[other, arguments]] + base[i + 1 :]
        yield base[:i] + base[i + 1 :]
        yield base + [base[i]]
    yield []
    yield base[::-1]
    shuffled = list(base)
    rng.shuffle(shuffled)
    yield shuffled
    yield [base[0]] * len(base)
    # Arguments.
    for base in (bases[0], bases[1]):
        for i, (name, arguments) in enumerate(base):
            (_, allowed), = answers[i].items()
            for changed in changed_arguments(arguments, allowed, rng, shrink):
                yield base[:i] + [[name, changed]] + base[i + 1 :]
    # Several changes at once.
    for _ in range(12):
        calls = []
        for i, (name, arguments) in enumerate(rng.choice(bases)):
            (_, allowed), = answers[i].items()
            for _ in range(rng.randrange(3)):
                arguments = rng.choice(list(changed_arguments(arguments, allowed, rng, 2)))
            calls.append([name, arguments])
        if rng.random() < 0.5:
            rng.shuffle(calls)
        yield calls


def verdict(category, functions, calls, answers, model):
    """The checker's verdict; where it fails, that is none in the data's sense, and the calls count as wrong."""
    output = [{name: arguments} for name, arguments in calls]
    if not is_function_calling_format_output(output):
        return False, "format"
    try:
        result = ast_checker(functions, output, answers, language(category), category, model)
        return result["valid"], None if result["valid"] else result["error_type"]
    except Exception as e:  # noqa: BLE001
        return False, f"raised {type(e).__name__}"


def judged(category):
    rng = random.Random(category)
    rows = lines(DATA / f"BFCL_v4_{category}.json")
    answers = lines(DATA / "possible_answer" / f"BFCL_v4_{category}.json")
    assert len(rows) == len(answers), category
    for row, answer in zip(rows, answers):
        assert row["id"] == answer["id"], row["id"]
        row["ground_truth"] = answer["ground_truth"]
        seen, out = set(), []
        for calls in cases(category, row["ground_truth"], row["function"], rng):
            text = json.dumps(calls)
            if text in seen:
                continue
            seen.add(text)
            for model in ("dots", "underscores"):
                given = copy.deepcopy(row)
                valid, error = verdict(category, given["function"], json.loads(text), given["ground_truth"], model)
                out.append({"calls": calls, "underscores": model == "underscores", "valid": valid, "error_type": error})
        yield {"category": category, "row": row, "cases": out}


def without_answers(category):
    """Rows for which only counts whether there is a call."""
    for row in lines(DATA / f"BFCL_v4_{category}.json"):
        functions = row["function"] or [{"name": "f"}]
        out = []
        for calls in ([], [[functions[0]["name"], {}]], [["other", {"a": 1}]], [[functions[0]["name"], {}]] * 2):
            called = not is_empty_output([{name: arguments} for name, arguments in calls])
            out.append({"calls": calls, "underscores": False, "valid": called == ("irrelevance" not in category), "error_type": None})
        yield {"category": category, "row": row, "cases": out}


SOUP = {
    "java": 'new|new |new\t|ArrayList|ArrayList<>|ArrayList<String>|HashMap<>|HashMap<String, Object>|HashMap<|<|>|()|(|)|Arrays.asList(|(Arrays.asList('
    '|))|{{|}}|{|}|add(|); |put("|put("k", |", |"|\'|,|, | |\n|1|-2|3.5f|4L|5.5|1e3|1_0|true|false|a|é|int[]|int[]{|String[] {|Set<',
    "javascript": "[|]|[[|]]|[1, 2]|['a', 'b']|{|}|{a: 1, b: 'x'}|a:|'b': |: |:|,|, | , |;| |\n|1|-2.5|3n|1e3|1_0|true|false|x|é|'|\"|'s'|\"t\"|new Array(|"
    "new  Array(|new Array([1], [2])|(|)",
}
WHOLE = {
    "java": [
        'new ArrayList<String>(Arrays.asList("a", "b"))', "new ArrayList<>() {{ add(1); add(2.5f); }}", "new ArrayList<Integer>()", "new int[]{1, 2}",
        'new Object[] { 1L, "a", true }', 'new HashMap<String, Object>() {{ put("k", 1); put("l", "m"); }}', "new HashMap<>()", "12", "-1.5e3", "7L", "2f",
    ],
    "javascript": [
        "[1, 2, 'c']", "[[1, 2], ['a']]", "new Array(1, 2)", "new Array([1], [2, 3])", "{a: 1, 'b': [1, 2], c: 'x, y'}", "{}", "[]", "12", "-1.5", "7n", "'q'",
    ],
}
KINDS = {
    "java": ["byte", "integer", "float", "double", "long", "boolean", "char", "String", "any", "HashMap"]
    + [(outer, items) for outer in ("Array", "ArrayList") for items in ("integer", "long", "float", "boolean", "char", "String", "any", "ArrayList", "HashMap")],
    "javascript": ["String", "integer", "float", "Bigint", "Boolean", "dict", "any"]
    + [("array", items) for items in ("String", "integer", "float", "Bigint", "Boolean", "dict", "array", "any")],
}


def literals(name):
    """Rows whose only allowed value is what the checker reads out of a literal, or out of a text that is nearly one."""
    rng = random.Random(name)
    soup, category = SOUP[name].split("|"), f"simple_{name}"
    convert = java_type_converter if name == "java" else js_type_converter
    for number in range(12000):
        kind = rng.choice(KINDS[name])
        kind, items = kind if isinstance(kind, tuple) else (kind, None)
        if rng.random() < 0.3:
            text = "".join(rng.choice(soup) for _ in range(rng.randrange(1, 14)))
        else:
            text = rng.choice(WHOLE[name])
            for _ in range(rng.randrange(4)):
                at, cut = rng.randrange(len(text) + 1), rng.choice((0, 0, 0, 1, 3))
                text = text[:at] + rng.choice(soup + [""]) + text[at + cut :]
        try:
            value = convert(text, kind, items)
            json.dumps(value, allow_nan=False)
        except Exception:  # noqa: BLE001
            continue
        allowed = [{k: [v] for k, v in value.items()} if isinstance(value, dict) else value]
        parameter = {"type": kind, "description": "", **({"items": {"type": items}} if items else {})}
        function = {"name": "f", "description": "", "parameters": {"type": "dict", "properties": {"a": parameter}, "required": ["a"]}}
        row = {"id": f"{category}_{number}", "question": [[{"role": "user", "content": "?"}]], "function": [function], "ground_truth": [{"f": {"a": allowed}}]}
        calls = [["f", {"a": text}]]
        given = copy.deepcopy(row)
        valid, error = verdict(category, given["function"], copy.deepcopy(calls), given["ground_truth"], "dots")
        yield {"category": f"{name} literals", "row": row, "cases": [{"calls": calls, "underscores": False, "valid": valid, "error_type": error}]}


def show(lines):
    """Rows and arguments as texts, so that no reader on the way changes a number in them."""
    for line in lines:
        for case in line["cases"]:
            case["calls"] = [[name, json.dumps(arguments)] for name, arguments in case["calls"]]
        print(json.dumps({**line, "row": json.dumps(line["row"])}))


def main():
    for name in SOUP:
        show(literals(name))
    for category in CATEGORIES:
        show(judged(category))
    for category in WITHOUT_ANSWERS:
        show(without_answers(category))


main()
