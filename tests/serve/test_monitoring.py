"""Dashboard and alerts ask for what there is: our metrics, and Ray's own as its package's source names them."""

import functools
import json
import re
from pathlib import Path

import pytest
import ray
import yaml

from raycap.serve.telemetry.metrics import ALL

FOLDER = Path(__file__).parents[2] / "infra/monitoring"
SERVE_LABELS = {"application", "deployment", "replica"}
NODE_LABELS = {"instance", "GpuIndex"}
FUNCTIONS = {"sum", "avg", "min", "max", "by", "on", "rate", "absent", "histogram_quantile"}
SOURCES = ("serve/multiplex.py", "serve/_private/*.py", "dashboard/modules/reporter/reporter_agent.py")


def dashboard_expressions():
    dashboard = json.loads((FOLDER / "grafana-dashboard.json").read_text())
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]


def alerts():
    return [rule for group in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"] for rule in group["rules"]]


EXPRESSIONS = dashboard_expressions() + [rule["expr"] for rule in alerts()]


@functools.cache
def sources_of_ray():
    root = Path(ray.__file__).parent
    return "\n".join(path.read_text() for pattern in SOURCES for path in root.glob(pattern))


def labels_of(name):
    """Of a metric as Prometheus sees it; none if there is no such metric."""
    ours = {}
    for metric in ALL:
        suffixes = ("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",)
        for suffix in suffixes:
            le = {"le"} if suffix == "_bucket" else set()
            ours[f"ray_{metric.name}{suffix}"] = SERVE_LABELS | set(metric.tags) | le
    if name in ours:
        return ours[name]
    if f'"{name.removeprefix("ray_")}"' not in sources_of_ray():
        return None
    return NODE_LABELS if name.startswith("ray_node_") else SERVE_LABELS


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_names_metrics_and_labels_that_exist(expression):
    names = set(re.findall(r"\bray_\w+", expression))
    known = {name: labels_of(name) for name in names}
    assert names, "it asks for nothing"
    assert None not in known.values(), f"no such metric: {known}"
    for name, matchers in re.findall(r"(ray_\w+)\{([^}]*)\}", expression):
        assert set(re.findall(r'(\w+)\s*=?[=~!]~?\s*"', matchers)) <= known[name]
    for labels in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression):
        assert set(labels.split(", ")) <= set.intersection(*known.values())


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_s_brackets_close_and_its_functions_exist(expression):
    bare = re.sub(r'"[^"]*"', '""', expression)
    opened = []
    for character in bare:
        if character in "([{":
            opened.append(character)
        elif character in ")]}":
            assert opened, f"{character} closes nothing"
            assert opened.pop() + character in ("()", "[]", "{}")
    assert not opened
    assert set(re.findall(r"\b([a-z_]+) ?\(", bare)) <= FUNCTIONS


def test_every_measure_of_ours_is_seen_somewhere():
    for metric in ALL:
        assert any(f"ray_{metric.name}" in expression for expression in EXPRESSIONS), metric.name


def test_panels_have_a_place_and_a_number_of_their_own():
    panels = json.loads((FOLDER / "grafana-dashboard.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for place in (panel["gridPos"] for panel in panels):
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_alerts_say_what_is_wrong_and_how_much_it_matters():
    assert len({rule["alert"] for rule in alerts()}) == len(alerts())
    for rule in alerts():
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"]


def test_prometheus_finds_ray_s_nodes_and_these_alerts():
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    assert config["rule_files"] == ["alerts.yml"]
    (job,) = config["scrape_configs"]
    (file,) = job["file_sd_configs"][0]["files"]
    assert Path(file).name == ray._private.ray_constants.PROMETHEUS_SERVICE_DISCOVERY_FILE
