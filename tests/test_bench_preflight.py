"""What a suite is not begun on, what is said of a host and its NICs, and what is put back."""

import json
import os
import signal
import struct
from argparse import Namespace
from contextlib import ExitStack, suppress
from types import SimpleNamespace

import pytest

from bench import __main__ as command
from bench import preflight
from bench.environment import describe, governors
from bench.nic_facts import Interrupt, cpus_in, describe_link, interrupts
from bench.preflight import Needs, check_links, look_at_host, look_at_links, ready, steer
from l2fwd import ethtool
from l2fwd.errors import ConfigError, KernelError, RunError
from l2fwd.link import in_netns, set_down, set_mtu, set_up

SMALL = Needs(frame_bytes=1414)  # what an MTU of 1400 has room for


@pytest.fixture
def cable(pair):
    """A veth whose ends are both up; this thread is where its left end is."""
    with in_netns(pair[1]):
        set_up("right")
    with in_netns(pair[0]):
        set_up("left")
        yield pair


# Links


@pytest.mark.privileged
def test_a_cable_that_has_all_that_is_needed_is_taken_and_what_is_doubtful_said(cable):
    said = []
    with ready(["left"], Needs(frame_bytes=1414, queues=2), said.append):
        pass
    (about_the_peer, no_table) = (line for line in said if line.startswith("left"))
    assert "veth peer right sends" in about_the_peer  # its offloads are as the kernel made them
    assert no_table.startswith("left has no RSS table")


@pytest.mark.privileged
@pytest.mark.parametrize(
    ("names", "needs", "said"),
    [
        (["none"], SMALL, "link none does not exist"),
        (["left", "left"], SMALL, "left is named twice; name a link once"),
        (["left"], Needs(), r"1514 bytes need 1500; ip link set dev left mtu 1500"),
        (
            ["left"],
            Needs(frame_bytes=60, queues=3),
            r"left has 2 queues, 3 are asked for; ethtool -L left combined 3",
        ),
    ],
)
def test_links_that_cannot_do_are_refused_with_the_remedy(cable, names, needs, said):
    with pytest.raises(ConfigError, match=said):
        check_links(names, needs)


@pytest.mark.privileged
def test_the_mtu_that_the_refusal_names_is_enough(cable):
    set_mtu("left", 1500)
    check_links(["left"], Needs())


@pytest.mark.privileged
def test_a_link_that_is_down_and_one_without_carrier_are_refused(cable, monkeypatch):
    monkeypatch.setattr(preflight, "_CARRIER_SECONDS", 0.1)
    with in_netns(cable[1]):
        set_down("right")
    with pytest.raises(RunError, match="left has no carrier; plug in the cable"):
        check_links(["left"], SMALL)
    set_down("left")
    with pytest.raises(ConfigError, match="left is down; ip link set dev left up"):
        check_links(["left"], SMALL)


@pytest.mark.privileged
def test_copy_mode_is_told_where_the_driver_has_zero_copy(cable, monkeypatch):
    """A veth that claims to have it: the bind is real, and obtains copy mode."""
    assert not [line for line in look_at_links(["left"], SMALL) if "copy mode" in line]
    real = preflight.xdp_features
    monkeypatch.setattr(
        preflight, "xdp_features", lambda index: SimpleNamespace(zero_copy=bool(real(index)))
    )
    (line,) = (line for line in look_at_links(["left"], SMALL) if "copy mode" in line)
    assert line.startswith("left: copy mode obtained, though veth has zero-copy; ")


@pytest.mark.privileged
def test_links_of_different_speed_and_pause_frames_are_said(cable, monkeypatch):
    speeds = {"left": 10000, "lo": 0}
    monkeypatch.setattr(ethtool, "speed", speeds.get)
    assert not [line for line in look_at_links(["left", "lo"], SMALL) if "speed" in line]
    speeds["lo"] = 1000
    monkeypatch.setattr(ethtool, "pause_frames", lambda name: (name == "lo", False))
    lines = list(look_at_links(["left", "lo"], SMALL))
    assert (
        "the links differ in speed: left 10000 Mbit/s, lo 1000 Mbit/s; the slowest is the limit"
        in lines
    )
    assert [line for line in lines if "pause" in line] == [
        "lo: pause frames are on: they hide drops; ethtool -A lo rx off tx off"
    ]


@pytest.mark.privileged
def test_interrupts_of_queues_in_use_on_a_workers_cpu_are_said(cable, monkeypatch):
    found = [
        Interrupt(40, "left-TxRx-0", "1"),
        Interrupt(41, "left-TxRx-1", "1"),
        Interrupt(42, "left", "1"),
    ]
    monkeypatch.setattr(preflight, "interrupts", lambda name: found)

    def shared(**needs):
        lines = look_at_links(["left"], Needs(**needs))
        return [line for line in lines if "interrupt" in line]

    assert shared(queues=1, cpus=(1,)) == [
        "left: interrupt 40 (left-TxRx-0) and a worker share CPU 1; "
        "echo CPU > /proc/irq/40/smp_affinity_list"
    ]
    assert len(shared(queues=2, cpus=(0, 1))) == 2
    assert not shared(queues=2, cpus=(0,))


# The host


def test_a_governor_that_changes_the_clock_is_said(monkeypatch):
    monkeypatch.setattr(preflight, "governors", lambda: ["performance", "powersave"])
    (line,) = (line for line in look_at_host(0) if "governor" in line)
    assert line.startswith("the frequency governor is powersave: ")
    assert line.endswith("cpupower frequency-set -g performance")
    monkeypatch.setattr(preflight, "governors", lambda: ["performance"])
    assert not [line for line in look_at_host(0) if "governor" in line]


def test_governors_are_read_from_every_cpu_and_told_once(tmp_path):
    for cpu, governor in enumerate(("powersave", "performance", "powersave")):
        folder = tmp_path / f"cpu{cpu}" / "cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_governor").write_text(f"{governor}\n")
    assert governors(tmp_path) == ["performance", "powersave"]


def test_one_cpu_only_is_said():
    cpus = os.sched_getaffinity(0)
    with ExitStack() as undo:
        undo.callback(os.sched_setaffinity, 0, cpus)
        os.sched_setaffinity(0, {min(cpus)})
        assert any(line.startswith("one CPU only") for line in look_at_host(0))


def test_other_work_is_said_and_not_looked_for_where_figures_mean_nothing(monkeypatch):
    monkeypatch.setattr(preflight, "wait_until_quiet", lambda seconds: False)
    assert any("other work kept the CPUs busy for 3 s" in line for line in look_at_host(3.0))
    assert not any("other work" in line for line in look_at_host(0.0))


def test_without_root_nothing_is_begun(monkeypatch, capsys):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert command.main(["all", "--tiny"]) == 3
    assert capsys.readouterr().err == "bench all: not root; run it with sudo\n"


# Steering


class FakeNic:
    """What a driver and net/ethtool/ioctl.c make of the calls about steering."""

    def __init__(self, table, queues=4, hashed=0x30):
        self.queues, self.hashed = queues, hashed
        self.table, self.is_configured = table, False
        self.size = len(table)

    def __call__(self, sock, ifname, request, operation):
        (number,) = struct.unpack_from("=I", request)
        if number == 0x38:  # ETHTOOL_GRXFHINDIR
            (size,) = struct.unpack_from("=I", request, 4)
            shown = self.table if size else []
            return struct.pack(f"=2I{len(shown)}I", number, self.size, *shown)
        if number == 0x39:  # ETHTOOL_SRXFHINDIR
            (size,) = struct.unpack_from("=I", request, 4)
            self.is_configured = size > 0
            self.table = list(struct.unpack_from(f"={size}I", request, 8))
            self.table = self.table or [i % self.queues for i in range(self.size)]
            assert len(self.table) == self.size
            return request
        _, flow_type, fields = struct.unpack("=2IQ", request)
        assert flow_type == 2  # UDP_V4_FLOW
        if number == 0x2A:  # ETHTOOL_SRXFH
            self.hashed = fields
        return struct.pack("=2IQ", number, flow_type, self.hashed)


@pytest.fixture
def nic(monkeypatch):
    """Put a NIC in the place of the ioctl."""

    def put(*arguments, **settings):
        made = FakeNic(*arguments, **settings)
        monkeypatch.setattr(ethtool, "_ethtool", made)
        shape = SimpleNamespace(rx_queue_count=made.queues)
        monkeypatch.setattr(preflight, "find_link", lambda name: shape)
        return made

    return put


def test_each_queue_in_use_gets_its_share_while_a_suite_runs(nic):
    made, said = nic([3, 3, 3, 0, 1, 2, 3, 3]), []
    with ExitStack() as undo:
        steer(undo, "eth2", 2, said.append)
        assert made.table == [0, 1, 0, 1, 0, 1, 0, 1]
        assert made.hashed == 0xF0  # addresses and ports
    assert (made.table, made.hashed) == ([3, 3, 3, 0, 1, 2, 3, 3], 0x30)
    assert made.is_configured
    assert not said


def test_a_table_that_was_the_drivers_own_is_given_back_to_the_driver(nic):
    made = nic([0, 1, 2, 3, 0, 1, 2, 3])
    with ExitStack() as undo:
        steer(undo, "eth2", 1, print)
        assert (made.table, made.is_configured, made.hashed) == ([0] * 8, True, 0x30)
    assert (made.table, made.is_configured) == ([0, 1, 2, 3, 0, 1, 2, 3], False)


def test_steering_that_is_right_is_left_alone(nic):
    made = nic([0, 1, 0, 1], queues=2, hashed=0xF0)
    with ExitStack() as undo:
        steer(undo, "eth2", 2, print)
        assert not made.is_configured
    assert not made.is_configured


@pytest.mark.parametrize("end", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_what_was_found_is_back_after_an_error_and_after_ctrl_c(nic, monkeypatch, end):
    made = nic([3] * 8)
    monkeypatch.setattr(preflight, "check_links", lambda names, needs: None)
    monkeypatch.setattr(preflight, "look_at_links", lambda names, needs: [])

    def run():
        with ready(["eth2"], Needs(queues=2), print):
            assert made.table == [0, 1] * 4
            if end is KeyboardInterrupt:
                signal.raise_signal(signal.SIGINT)
            raise end

    with pytest.raises(end):
        run()
    assert (made.table, made.hashed) == ([3] * 8, 0x30)


def test_what_a_driver_refuses_is_said_and_the_suite_runs_without(nic, monkeypatch):
    made, said = nic([3] * 8), []
    monkeypatch.setattr(ethtool, "set_rss_table", _refuse)
    with ExitStack() as undo:
        steer(undo, "eth2", 2, said.append)
        assert (made.table, made.hashed) == ([3] * 8, 0xF0)
    assert made.hashed == 0x30
    assert said == [
        "set RSS table of eth2: EINVAL (Invalid argument); which share a queue gets is the "
        "driver's choice"
    ]


def test_what_cannot_be_put_back_is_said_and_the_rest_is_put_back(nic, monkeypatch):
    made, said = nic([3] * 8), []
    with ExitStack() as undo:
        steer(undo, "eth2", 2, said.append)
        monkeypatch.setattr(ethtool, "set_rss_table", _refuse)
    assert said == [
        "the RSS table of eth2 is not as it was: set RSS table of eth2: EINVAL (Invalid argument); "
        "see ethtool -X"
    ]
    assert made.hashed == 0x30


def _refuse(name, queues):
    raise KernelError(22, "set RSS table of", name)


def test_a_nic_without_a_table_is_said_only_where_queues_share(nic):
    nic([])
    said = []
    with ExitStack() as undo:
        steer(undo, "eth2", 1, said.append)
        assert not said
        steer(undo, "eth2", 2, said.append)
    assert said == ["eth2 has no RSS table: which share a queue gets is the driver's choice"]


@pytest.mark.privileged
def test_a_veth_has_speed_but_neither_rings_nor_tables(cable):
    assert ethtool.speed("left") == 10000
    assert ethtool.ring_sizes("left") == (0, 0)
    assert ethtool.rss_table("left") == []
    assert ethtool.hash_fields("left", ethtool.UDP_V4_FLOW) is None
    assert ethtool.pause_frames("left") is None
    with pytest.raises(KernelError, match="set RSS table of left: EOPNOTSUPP"):
        ethtool.set_rss_table("left", [0, 1])


# Facts


def test_interrupts_are_found_by_the_pci_address_with_the_cpus_that_take_them(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(ethtool, "bus_info", lambda name: "0000:03:00.0")
    (tmp_path / "interrupts").write_text(
        "           CPU0       CPU1\n"
        " 40:         10          0  IR-PCI-MSIX-0000:03:00.0    0-edge      eth2-TxRx-0\n"
        " 41:          0         10  IR-PCI-MSIX-0000:03:00.0    1-edge      eth2-TxRx-1\n"
        " 50:          0         10  IR-PCI-MSIX-0000:04:00.0    1-edge      eth3-TxRx-0\n"
        "NMI:          0          0   Non-maskable interrupts\n"
    )
    for number, files in {
        40: {"effective_affinity_list": "1", "smp_affinity_list": "0-1"},
        41: {"effective_affinity_list": "", "smp_affinity_list": "0-1"},
    }.items():
        folder = tmp_path / "irq" / str(number)
        folder.mkdir(parents=True)
        for name, text in files.items():
            (folder / name).write_text(f"{text}\n")
    devices = tmp_path / "0000:03:00.0" / "msi_irqs"
    devices.mkdir(parents=True)
    for number in (40, 41, 43):  # 43 is not in use
        (devices / str(number)).touch()
    assert interrupts("eth2", proc=tmp_path, devices=tmp_path) == [
        Interrupt(40, "eth2-TxRx-0", "1"),
        Interrupt(41, "eth2-TxRx-1", "0-1"),
    ]
    assert cpus_in("0-1") == {0, 1}


@pytest.mark.privileged
def test_the_environment_tells_of_host_and_links_and_is_json(cable):
    found = describe(["left", "none"])
    assert set(found["links"]) == {"left"}
    assert found["links"]["left"] == describe_link("left")
    facts = found["links"]["left"]
    assert (facts["driver"], facts["mtu"], facts["rx_queues"]) == ("veth", 1400, 2)
    assert found["cpus"] == os.cpu_count()
    assert found["libxdp"][0].isdigit()
    assert found["libbpf"][0].isdigit()
    assert json.loads(json.dumps(found)) == found | {"links": {"left": facts}}


# The command line


@pytest.mark.privileged
def test_a_suite_runs_between_the_looks_and_its_notes_are_in_the_file(cable, tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "governors", lambda: ["powersave"])
    set_up("lo")
    output = tmp_path / "made.json"
    options = Namespace(
        level="tiny", json=True, output=output, in_link="left", out_link="lo", gen_link=""
    )
    seen = []
    suite = SimpleNamespace(
        needs=lambda options: Needs(frame_bytes=60),
        run=lambda options, record: seen.append(list(record.notes)),
    )
    assert command.run("made", suite, options) == 0
    fields = json.loads(output.read_text())
    assert fields["complete"]
    assert seen == [fields["notes"]]
    assert any("powersave" in note for note in fields["notes"])
    assert set(fields["environment"]["links"]) == {"left", "lo"}
    output.unlink()
    suite.needs = lambda options: Needs(frame_bytes=9000)
    with suppress(ConfigError):
        command.run("made", suite, options)
    assert (len(seen), output.exists()) == (1, False)
