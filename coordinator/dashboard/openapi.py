"""What the dashboard answers, as an OpenAPI document. A test holds it against the answers."""

from __future__ import annotations

from typing import Any

from .runs import MAX_COMPARED

_NUMBER = {"type": ["number", "null"]}
_TEXT = {"type": "string"}
_WHOLE = {"type": "integer"}
_WORDS = {"type": ["string", "null"]}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": properties}


def _list(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}


WORKER = _object(
    name=_TEXT, region=_TEXT, host=_TEXT, memory_bytes=_WHOLE, reason=_TEXT,
    state={"enum": ["member", "spare", "gone"]}, stage=_WHOLE, replica=_WHOLE, busy=_NUMBER,
    memory_used_bytes={"type": ["integer", "null"]},
)  # fmt: skip
TRAFFIC = {
    **_object(
        kind=_TEXT, codec=_TEXT, flows=_WHOLE, sent_bytes=_NUMBER, raw_bytes=_NUMBER, relative_error=_NUMBER
    ),
    "description": "`from` and `to` are regions; bytes are of the last recorded step.",
}
EVENT = _object(at_s={"type": "number"}, kind=_TEXT, text=_TEXT, bad={"type": "boolean"})
PLAN = _object(
    at_s={"type": "number"}, step=_WHOLE, why=_TEXT, version=_WHOLE, stages=_WHOLE, replicas=_WHOLE,
    predicted_step_s=_NUMBER,
)  # fmt: skip
RUN = _object(
    seq=_WHOLE, run=_TEXT, job=_TEXT, phase=_TEXT, reason=_TEXT, code={"type": ["integer", "null"]},
    step=_WHOLE, steps=_WHOLE, needed=_WHOLE, recorded_step=_WHOLE, outlook=_TEXT, eval_loss=_NUMBER,
    tokens=_WHOLE, loss=_NUMBER,
    grad_norm=_NUMBER, tokens_per_s=_NUMBER, step_s=_NUMBER, predicted_step_s=_NUMBER, sent_bytes=_NUMBER,
    raw_bytes=_NUMBER, workers=_list(WORKER), plan={"type": ["object", "null"]},
    plans=_list(PLAN),
    traffic=_list(TRAFFIC), events=_list(EVENT),
)  # fmt: skip
STEPS = _object(
    series={"type": "object", "additionalProperties": _list(_NUMBER)}, evals=_list(_list(_NUMBER))
)
TIMELINE = _object(
    devices=_list(_TEXT), predicted={"type": ["object", "null"]}, measured=_list({"type": "object"})
)
LINKS = _list(_object(links=_WHOLE, latency_s=_NUMBER, bandwidth_Bps=_NUMBER))
_COUNT = {"type": ["integer", "null"]}
LISTED = {
    **_object(
        id=_TEXT, own={"type": "boolean"}, error=_TEXT, run=_WORDS, job=_WORDS, phase=_WORDS, reason=_WORDS,
        code=_COUNT, began_s={"type": "number"}, last_s=_NUMBER, attempts=_COUNT, step=_COUNT, steps=_COUNT,
        loss=_NUMBER, eval_loss=_NUMBER, tokens=_COUNT, tokens_per_s=_NUMBER, step_s=_NUMBER,
        predicted_step_s=_NUMBER, sent_bytes=_NUMBER, stages=_COUNT, replicas=_COUNT,
    ),
    "description": "`own`: the run that is served; `error`: why it cannot be read, the rest is null then. "
    "Seconds of a step, tokens a second and bytes a step are means over the run.",
}  # fmt: skip
COMPARED = _object(runs=_list(_TEXT), settings=_list(_object(key=_TEXT, values=_list(_TEXT))))
ERROR = _object(error=_TEXT)


def _get(summary: str, schema: Any, parameters: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    answer = {"description": summary, "content": {"application/json": {"schema": schema}}}
    refused = {"description": "Refused, with the reason.", "content": {"application/json": {"schema": ERROR}}}
    refusals = dict.fromkeys(("400", "401", "403", "404", "405", "421", "503"), refused)
    return {
        "get": {"summary": summary, "parameters": parameters or [], "responses": {"200": answer, **refusals}}
    }


_AFTER = {
    "name": "after", "in": "query", "required": False, "schema": {"type": "integer"},
    "description": "Only steps after this one.",
}  # fmt: skip
_RUN = {
    "name": "run", "in": "query", "required": False, "schema": {"type": "string", "maxLength": 4096},
    "description": "Of this run, by its `id` of /api/runs; without it, of the one that is served.",
}  # fmt: skip
_RUNS = {
    "name": "run", "in": "query", "required": True, "style": "form", "explode": True,
    "schema": {"type": "array", "items": {"type": "string", "maxLength": 4096}, "minItems": 2,
               "maxItems": MAX_COMPARED, "uniqueItems": True},
    "description": "The `id` of each.",
}  # fmt: skip

DOCUMENT: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {
        "title": "Isthmus: a run, and others",
        "version": "1",
        "description": "Reads; changes nothing. Units are suffixes.",
    },
    "paths": {
        "/api/run": _get("The run at this moment.", RUN, [_RUN]),
        "/api/steps": _get(
            "Series over the steps, at most some 2,000 points, and evaluations.", STEPS, [_AFTER, _RUN]
        ),
        "/api/timeline": _get("Spans of recorded steps beside the engine's prediction.", TIMELINE, [_RUN]),
        "/api/links": _get("Links between regions, as the workers measured them.", LINKS, [_RUN]),
        "/api/runs": _get("The runs that can be opened, the last begun first.", _list(LISTED)),
        "/api/compare": _get("Settings in which the jobs of runs differ.", COMPARED, [_RUNS]),
    },
}
