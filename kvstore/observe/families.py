"""One scrape: values under the words of `words.METRICS`, and no others."""

from collections.abc import Iterator

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from kvstore.observe.histogram import Histogram
from kvstore.observe.words import METRICS


class Families:
    """What a process shows in answer to one scrape; also what prometheus_client's encoders call a registry."""

    def __init__(self) -> None:
        self._families: dict[str, Metric] = {}

    def add(self, name: str, value: float, *labels: str) -> None:
        """A counter or a gauge, with the values of its labels in the order of its word."""
        family = self._family(name, labels)
        assert isinstance(family, CounterMetricFamily | GaugeMetricFamily)
        family.add_metric(labels, value)

    def histogram(self, name: str, histogram: Histogram, *labels: str) -> None:
        family = self._family(name, labels)
        assert isinstance(family, HistogramMetricFamily)
        family.add_metric(labels, histogram.buckets(), histogram.sum)

    def take(self, family: Metric) -> None:
        """A family that is made elsewhere."""
        self._families[family.name] = family

    def collect(self) -> Iterator[Metric]:
        yield from self._families.values()

    def _family(self, name: str, labels: tuple[str, ...]) -> Metric:
        word = METRICS[name]
        assert len(labels) == len(word.labels), name
        family = self._families.get(name)
        if family is None:
            kinds = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}
            family = self._families[name] = kinds[word.kind](name, word.help, labels=word.labels)
        return family
