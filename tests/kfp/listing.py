"""Filters, orders and pages of the pipeline server's lists."""

import base64
import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

Json = dict[str, Any]

OPERATIONS: tuple[str, ...] = (
    *("OPERATION_UNSPECIFIED", "EQUALS", "NOT_EQUALS", "GREATER_THAN", "GREATER_THAN_EQUALS"),
    *("LESS_THAN", "LESS_THAN_EQUALS", "IN", "IS_SUBSTRING"),
)
# What the Kubernetes store calls the operations that it has not.
ORDERS = {"GREATER_THAN": "gt", "GREATER_THAN_EQUALS": "gte", "LESS_THAN": "lt", "LESS_THAN_EQUALS": "lte"}
VALUES = ("string_value", "int_value", "long_value", "timestamp_value", "string_values")


class BadOptions(Exception):
    """The options of a list are wrong."""


class BadPageToken(Exception):
    """The page's token is none."""


def listed(
    items: Sequence[Json], query: Mapping[str, str], *, kind: str, keys: Sequence[str], store: str = ""
) -> tuple[list[Json], int, str]:
    """Return the page that is asked for, the number of all items, and the token of the next page."""
    order, _, direction = query.get("sort_by", "").partition(" ")
    size = int(query.get("page_size") or 0)
    if size < 0:
        raise BadOptions(f"The page size should be greater than 0. Got {size}")
    if order.startswith("metric:"):
        raise BadOptions(f'cannot sort by field "{order[7:]}" on type "{kind}"')
    if order not in ("", "name", "display_name", "created_at", *(("state", "finished_at") if kind == "Run" else ())):
        raise BadOptions(f'Invalid sorting field: "{order}" on listable type {kind}')
    for predicate in _predicates(query.get("filter", "")):
        items = [item for item in items if _test(predicate, keys, store)(item)]
    key = order or "created_at"
    key = "display_name" if key == "name" and kind == "Run" else key
    items = sorted(items, key=lambda item: str(item.get(key, "")), reverse=direction == "desc")
    start = _start(query)
    size = size or 20
    rest = start + size < len(items)
    return list(items[start : start + size]), len(items), _token(start + size, query) if rest else ""


def _token(start: int, query: Mapping[str, str]) -> str:
    state = [start, query.get("sort_by", ""), query.get("filter", "")]
    return base64.b64encode(json.dumps(state).encode()).decode()


def _start(query: Mapping[str, str]) -> int:
    if not query.get("page_token"):
        return 0
    try:
        start, *options = json.loads(base64.b64decode(query["page_token"], validate=True))
    except ValueError:
        raise BadPageToken from None
    if options != [query.get("sort_by", ""), query.get("filter", "")]:
        raise BadOptions("page token does not match the supplied sort by and/or filtering criteria")
    return int(start)


def _predicates(text: str) -> list[Json]:
    if not text:
        return []
    quoted = json.dumps(text)
    try:
        found = json.loads(text)["predicates"]
    except (ValueError, KeyError, TypeError):
        word = re.match(r"\{(\w+)", text)
        why = f"syntax error (line 1:2): invalid value {word[1]}" if word else "unexpected EOF"
        raise BadOptions(f"failed to parse valid filter from {quoted}: proto: {why}") from None
    predicates = [{_snake(key): value for key, value in predicate.items()} for predicate in found]
    for predicate in predicates:
        operation = predicate.get("operation", 0)
        predicate["operation"] = OPERATIONS[operation] if isinstance(operation, int) else operation
        wrong = [f'unknown field "{key}"' for key in predicate if key not in ("key", "operation", *VALUES)]
        if predicate["operation"] not in OPERATIONS:
            wrong.append(f'invalid value for enum field operation: "{predicate["operation"]}"')
        if wrong:
            where = text.index('"op') + 1
            raise BadOptions(f"failed to parse valid filter from {quoted}: proto: (line 1:{where}): {wrong[0]}")
    return predicates


def _snake(name: str) -> str:
    return re.sub(r"[A-Z]", lambda upper: f"_{upper[0].lower()}", name)


def _test(predicate: Json, keys: Sequence[str], store: str) -> Callable[[Json], bool]:
    key, operation = str(predicate["key"]), str(predicate["operation"])
    if key not in keys:
        raise BadOptions(f'no support for filtering on unrecognized field "{key}"')
    if store and operation in ORDERS:
        raise BadOptions(
            f"Filter {ORDERS[operation]} is not implemented for {store}. "
            "Supported filters are eq, neq, in, and substring."
        )
    key = "state" if key == "status" else key
    if operation == "IN":
        return lambda item: item.get(key) in predicate["string_values"]["values"]
    value = next((predicate[name] for name in VALUES if name in predicate), "")
    if operation in ORDERS:
        bound = float(value) if str(value).isdecimal() else datetime.fromisoformat(value).timestamp()
        above = operation.startswith("GREATER")
        return lambda item: (datetime.fromisoformat(item[key]).timestamp() > bound) == above
    tests: dict[str, Callable[[str], bool]] = {
        "EQUALS": lambda found: found == value,
        "NOT_EQUALS": lambda found: found != value,
        "IS_SUBSTRING": lambda found: str(value) in found,
    }

    def test(item: Json) -> bool:
        # In the Kubernetes store a name is the resource's; a run's name is its display name.
        return tests[operation](str(item.get(key, item.get("display_name") if key == "name" else "")))

    return test
