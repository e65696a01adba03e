"""What made the stored artefacts behind the cells of a run: versions, device, threads, and when."""

import contextlib

from rdp_bench.cache.store import Store
from rdp_bench.errors import RdpBenchError
from rdp_bench.keys import Record, canonical_json
from rdp_bench.results.record import CellResult

ARTEFACTS = (("eval", "eval_key"), ("adv", "adv_key"), ("image_quality", "image_quality_key"))
"""Kinds of artefacts whose values are in the numbers of a cell, and the field of `CellResult` with their key."""


class Provenance:
    """Collects what made the artefacts behind cells, each artefact once.

    Of the batches of an artefact that were made in one environment, the first and the last time are kept.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._environments: dict[str, tuple[int, Record]] = {}
        self._by_key: dict[str, list[list[object]]] = {}
        self.found: list[Record] = []
        """Environments with a time each."""
        self.remarks: dict[str, None] = {}
        """What a reader of the numbers must know, as those who made them said."""

    def add(self, cell: CellResult) -> None:
        """The predictions of a cell, its adversarial set and its image quality."""
        for kind, field in ARTEFACTS:
            key = getattr(cell, field)
            if key and key not in self._by_key:
                self._by_key[key] = []
                with contextlib.suppress(RdpBenchError):  # a set may be gone that its predictions outlive
                    artefact = self._store.open(kind, key)
                    self._keep(key, artefact.made())
                    self.remarks.update(dict.fromkeys(artefact.remarks()))

    def _keep(self, key: str, made: list[Record]) -> None:
        times: dict[int, list[str]] = {}
        for each in made:
            environment = {name: value for name, value in each.items() if name != "time"}
            if environment:  # batches written without a worker, as tests do, know their time alone
                known = self._environments
                number, _ = known.setdefault(canonical_json(environment), (len(known), environment))
                times.setdefault(number, []).append(str(each.get("time", "")))
        environments = [environment for _, environment in self._environments.values()]
        for number, all_times in times.items():
            first, last = min(all_times), max(all_times)
            self._by_key[key].append([number, first, last])
            self.found += [{**environments[number], "time": time} for time in dict.fromkeys((first, last)) if time]

    @property
    def facts(self) -> Record:
        """All of it as JSON; `PredictionFile.made` reads it."""
        environments = [environment for _, environment in self._environments.values()]
        return {"environments": environments, "made": {key: made for key, made in self._by_key.items() if made}}
