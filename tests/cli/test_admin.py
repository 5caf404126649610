"""`kvstore admin` against a control plane that answers from memory."""

import argparse
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from kvstore.blocks.keys import chain
from kvstore.blocks.layout import Layout
from kvstore.blocks.namespace import Namespace
from kvstore.cli.admin_rules import duration_ms, shown_ms
from kvstore.cli.main import main
from kvstore.pb import admin_pb2, admin_pb2_grpc, node_pb2, types_pb2
from kvstore.policy.rules import DEFAULT_RULES
from kvstore.rpc.rules import rules_message, rules_of

LAYOUT = Layout.dense(layers=2, kv_heads=1, head_dim=8, block_tokens=16)
NAMESPACE = Namespace.of("tiny", LAYOUT, tenant="t")
BOOK = types_pb2.RuleBook(version=1, rules={"tin*": types_pb2.Rules(ttl_ms=90_000, copies=2)})


LANES = [
    types_pb2.LaneLoad(lane="storage-in", queued_bytes=4_000, bytes_per_s=50 * 10**9, nominal_bytes_per_s=50 * 10**9),
    types_pb2.LaneLoad(lane="compute-out", bytes_per_s=125 * 10**6),
    types_pb2.LaneLoad(lane="nvme0", bytes_per_s=900 * 10**6, moved_bytes=7 * 10**12),
]
MOVED = node_pb2.LaneMoved(
    lane="nvme0",
    last_5s_bytes=10_000_000_000,
    last_1min_bytes=6 * 10**10,
    last_10min_bytes=3 * 10**11,
    last_60min_bytes=36 * 10**8,
)


class Answers(admin_pb2_grpc.AdminServicer):
    """Remembers the last request for blocks; every second block is known."""

    asked: admin_pb2.PrefixBlocksRequest
    told: admin_pb2.AdminSetRulesRequest

    def Adopt(self, request, context):
        device = node_pb2.DeviceUsage(path=request.path, in_service=True, direct=True, adopted=True)
        assert request.node_id == "n1"
        return node_pb2.AdoptReply(devices=[device], blocks=0 if request.release else 1234)

    def Stats(self, request, context):
        tier = node_pb2.TierUsage(tier=types_pb2.TIER_DRAM, capacity_bytes=2**30, live_slots=12, live_bytes=12_500_000)
        good = admin_pb2.NodeUsage(
            node_id="n1",
            reachable=True,
            usage=node_pb2.UsageReply(tiers=[tier], lanes=LANES, moved=[MOVED], violations=["one slot too many"]),
        )
        gone = admin_pb2.NodeUsage(node_id="n2", error="connection refused")
        copies = [
            node_pb2.NamespaceCopies(
                namespace_id=NAMESPACE.id,
                tenant="t",
                model="tiny",
                wanted=2,
                blocks_on=[17, 3456, 9],
                copies_owed=17,
                durable_blocks=2345,
                counted_ms_ago=3000,
            ),
            node_pb2.NamespaceCopies(namespace_id=bytes(16), tenant="t", wanted=3, blocks_on=[0, 0, 5, 0]),
        ]
        return admin_pb2.StatsReply(
            copies=copies,
            indexed_blocks=1234,
            matches=5,
            asked_blocks=8,
            matched_blocks=6,
            nodes=[good, gone],
            storage_nics=3,
            storage_nic_max_to_avg=1.184,
        )

    def Nodes(self, request, context):
        address = types_pb2.NodeAddress(node_id="n1", grpc="127.0.0.1:5", host="h")
        return admin_pb2.NodesReply(nodes=[admin_pb2.NodeState(address=address, roles=["prefill"], alive=True)])

    def GetRules(self, request, context):
        held = node_pb2.NamespaceRules(
            namespace_id=NAMESPACE.id, tenant="t", model="tiny", rules=rules_message(DEFAULT_RULES.to_fields())
        )
        good = admin_pb2.NodeRules(node_id="n1", rules=node_pb2.GetRulesReply(namespaces=[held]))
        return admin_pb2.AdminGetRulesReply(book=BOOK, nodes=[good, admin_pb2.NodeRules(node_id="n2", error="gone")])

    def SetRules(self, request, context):
        self.told = request
        nodes = [admin_pb2.NodeReached(node_id="n1"), admin_pb2.NodeReached(node_id="n2", error="gone")]
        return admin_pb2.AdminSetRulesReply(book=BOOK, nodes=nodes)

    def PrefixBlocks(self, request, context):
        self.asked = request
        keys = [request.keys[i : i + 16] for i in range(0, len(request.keys), 16)]
        known = admin_pb2.BlockLocation(
            node_id="n1",
            alive=True,
            tier=types_pb2.TIER_DRAM,
            shard=types_pb2.Shard(rank=0, count=1),
            remaining_ms=9000,
        )
        blocks = [
            admin_pb2.BlockLocations(key=key, locations=[known] if i % 2 == 0 else []) for i, key in enumerate(keys)
        ]
        return admin_pb2.PrefixBlocksReply(blocks=blocks)


@pytest.fixture
def control(tmp_path: Path) -> Iterator[tuple[str, Answers]]:
    answers = Answers()
    address = f"unix:{tmp_path}/control.sock"
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        admin_pb2_grpc.add_AdminServicer_to_server(answers, server)
        server.add_insecure_port(address)
        server.start()
        yield address, answers
        stopped: threading.Event = server.stop(0)
        assert stopped.wait(5)


def test_stats_as_tables(control: tuple[str, Answers], capsys: pytest.CaptureFixture[str]) -> None:
    """Sizes, hit ratio and a node that cannot be reached are all there to be read."""
    assert main(["admin", "stats", "--control", control[0]]) == 0
    text = capsys.readouterr().out
    for words in ("1,234", "75.0%", "12.5 MB", "1GiB", "connection refused", "max/avg over 3: 1.18"):
        assert words in text


def test_adoption_as_a_table(control: tuple[str, Answers], capsys: pytest.CaptureFixture[str]) -> None:
    """Which devices the node has then, and how many blocks came with the directory."""
    assert main(["admin", "adopt", "n1", "/mnt/x", "--control", control[0]]) == 0
    text = capsys.readouterr().out
    assert "yes, adopted" in text
    assert "1,234 blocks of the directory are served" in text
    assert main(["admin", "adopt", "n1", "/mnt/x", "--release", "--json", "--control", control[0]]) == 0
    assert json.loads(capsys.readouterr().out)["blocks"] == "0"


def test_copies_as_a_table(control: tuple[str, Answers], capsys: pytest.CaptureFixture[str]) -> None:
    """A column per number of nodes, as far as any namespace wants; what is owed, what is durable, how old it is."""
    assert main(["admin", "stats", "--control", control[0]]) == 0
    lines = capsys.readouterr().out.splitlines()
    title = next(number for number, line in enumerate(lines) if line.strip() == "copies")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines[title:] if line.startswith("│")]
    assert rows == [
        [NAMESPACE.id.hex(), "tiny", "t", "2", "17", "3,456", "–", "9", "17", "2,345", "3 s ago"],
        [bytes(16).hex(), "–", "t", "3", "0", "0", "5", "0", "0", "0", "0 s ago"],
    ]


def test_lanes_as_a_table(control: tuple[str, Answers], capsys: pytest.CaptureFixture[str]) -> None:
    """Each with what waits, what it can carry and from where that is known, and what it has moved, lately too."""
    assert main(["admin", "lanes", "--control", control[0]]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│ n" in line]
    assert rows == [
        ["n1", "storage-in", "4 kB", "50 GB", "configured", "0 B", "", "", "", ""],
        ["n1", "compute-out", "0 B", "125 MB", "a guess", "0 B", "", "", "", ""],
        ["n1", "nvme0", "0 B", "900 MB", "measured", "7 TB", "2 GB/s", "1 GB/s", "500 MB/s", "1 MB/s"],
        ["n2", "not reachable: connection refused", "", "", "", "", "", "", "", ""],
    ]
    assert lines[-1] == "storage NIC traffic inwards, max/avg over 3: 1.18"


def test_check_fails_on_a_broken_law(control: tuple[str, Answers], capsys: pytest.CaptureFixture[str]) -> None:
    """What is broken is named, a node that is silent too, and the exit code tells."""
    assert main(["admin", "check", "--control", control[0]]) == 1
    text = capsys.readouterr().out
    for words in ("n1: one slot too many", "n2 cannot be asked: connection refused", "1 of 2 nodes"):
        assert words in text


def test_nodes_as_json(control: tuple[str, Answers], capsys: pytest.CaptureFixture[str]) -> None:
    """--json is one object, with the message's own names."""
    assert main(["admin", "nodes", "--json", "--control", control[0]]) == 0
    (node,) = json.loads(capsys.readouterr().out)["nodes"]
    assert (node["address"]["node_id"], node["alive"], node["silent_ms"]) == ("n1", True, "0")


def test_blocks_by_key(control: tuple[str, Answers], capsys: pytest.CaptureFixture[str]) -> None:
    """Every key has a line, also where nothing is known of it."""
    keys = [bytes([i] * 16) for i in range(3)]
    argv = ["--namespace-id", "00" * 16, "--keys", *(key.hex() for key in keys)]
    assert main(["admin", "blocks", "--control", control[0], *argv]) == 0
    text = capsys.readouterr().out
    assert all(key.hex() in text for key in keys)
    assert text.count("n1") == 2


def test_blocks_by_tokens(control: tuple[str, Answers], tmp_path: Path) -> None:
    """A namespace and tokens from files are asked for with the keys that a client computes."""
    group = {"layers": 2, "page_tokens": 16, "page_bytes": LAYOUT.group.page_bytes, "dtype": "bfloat16"}
    namespace = {"model": "tiny", "tenant": "t", "layout": {"block_tokens": 16, "groups": [group]}}
    (tmp_path / "namespace.json").write_text(json.dumps(namespace))
    (tmp_path / "tokens").write_text(json.dumps([*range(40)]))
    argv = ["--namespace-json", str(tmp_path / "namespace.json"), "--tokens", str(tmp_path / "tokens")]
    assert main(["admin", "blocks", "--control", control[0], *argv]) == 0
    asked = control[1].asked
    assert asked.namespace_id == NAMESPACE.id
    assert asked.keys == chain(NAMESPACE.id, range(40), 16).packed


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["blocks", "--keys", "00" * 16], "--namespace-id and --keys"),
        (["blocks", "--namespace-json", "{tmp}/none", "--tokens", "{tmp}/none"], "No such file"),
        (["blocks", "--namespace-json", "{tmp}/list", "--tokens", "{tmp}/list"], "JSON object"),
        (["blocks", "--namespace-json", "{tmp}/object", "--tokens", "{tmp}/list"], "not a namespace"),
    ],
)
def test_what_cannot_be_asked(argv: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Half a question and broken files are refused before anything is sent."""
    (tmp_path / "list").write_text("[1]")
    (tmp_path / "object").write_text("{}")
    filled = [word.replace("{tmp}", str(tmp_path)) for word in argv]
    assert main(["admin", *filled, "--control", "127.0.0.1:1"]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["purge", "--prefix", "00" * 16, "--skip-blocks", "-1"], "'-1' is no whole number of 0 or more"),
        (["purge", "--prefix", "00" * 16, "--skip-blocks", "two"], "'two' is no whole number of 0 or more"),
        (["top", "--count", "-1"], "'-1' is no whole number of 0 or more"),
        (["top", "--interval", "0s"], "'0s' is less than 100ms"),
        (["top", "--interval", "99ms"], "'99ms' is less than 100ms"),
        (["watch", "--past", "-1"], "'-1' is no whole number of 0 or more"),
        (["stats", "--deadline-s", "-1"], "'-1' is no time in seconds"),
        (["stats", "--deadline-s", "nan"], "'nan' is no time in seconds"),
        (["stats", "--deadline-s", "inf"], "'inf' is no time in seconds"),
    ],
)
def test_numbers_that_cannot_be_meant(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Are not taken for others: fewer blocks that stay would be more that go."""
    with pytest.raises(SystemExit, match="2"):
        main(["admin", *argv, "--control", "127.0.0.1:1"])
    assert words in capsys.readouterr().err


def test_a_control_plane_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line says who could not be reached."""
    address = f"unix:{tmp_path}/nobody.sock"
    assert main(["admin", "stats", "--control", address, "--deadline-s", "2"]) == 2
    assert f"control plane {address}" in capsys.readouterr().err


def test_rules_as_tables(control: tuple[str, Answers], capsys: pytest.CaptureFixture[str]) -> None:
    """What is set, and what holds on each node, times as one writes them; a silent node with its reason."""
    assert main(["admin", "ttl", "get", "--control", control[0]]) == 0
    text = capsys.readouterr().out
    for words in ("tin*", "90s", "n1", NAMESPACE.id.hex(), "tiny", "30m", "sliding", "n2", "gone"):
        assert words in text


def test_rules_are_set_by_what_is_named(control: tuple[str, Answers], capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing else is sent; who does not follow yet is said."""
    options = ["--ttl", "2h", "--kind", "fixed", "--max", "0s", "--copies", "2"]
    assert main(["admin", "ttl", "set", "llama-*", *options, "--control", control[0]]) == 0
    assert (control[1].told.pattern, control[1].told.remove) == ("llama-*", False)
    assert rules_of(control[1].told.rules) == {
        "ttl_ms": 7_200_000,
        "ttl_kind": "fixed",
        "ttl_ms_max": 0,
        "copies": 2,
    }
    text = capsys.readouterr().out
    for words in ("tin*", "n2: follows with its next heartbeat: gone", "1 of 2 nodes follow"):
        assert words in text


def test_rules_are_removed(control: tuple[str, Answers]) -> None:
    """By their pattern."""
    assert main(["admin", "ttl", "remove", "llama-*", "--control", control[0]]) == 0
    assert (control[1].told.pattern, control[1].told.remove) == ("llama-*", True)


def test_a_number_that_the_wire_does_not_carry(
    control: tuple[str, Answers], capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, no traceback."""
    assert main(["admin", "ttl", "set", "llama", "--copies", "-1", "--control", control[0]]) == 2
    assert "ttl set:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "ms"), [("90s", 90_000), ("30m", 1_800_000), ("2h", 7_200_000), ("1500ms", 1500), ("0.5s", 500)]
)
def test_times_are_read_and_shown(text: str, ms: int) -> None:
    """What is shown can be given again."""
    assert duration_ms(text) == ms
    assert duration_ms(shown_ms(ms)) == ms


@pytest.mark.parametrize("text", ["", "90", "-5s", "1d", "s", "1e3s"])
def test_what_is_no_time(text: str) -> None:
    """A number without a unit is not guessed at."""
    with pytest.raises(argparse.ArgumentTypeError, match="is no time"):
        duration_ms(text)
