"""A Kubernetes node on this machine that cannot leave a trace.

The node is three namespaces (process, mount, network) below one process, ``init``. Its /run, /tmp and /var are folders
of ``STATE``, the kernel settings that a kubelet insists on are files laid over /proc/sys, its interface, rules and
routes are those of its own network. When ``init`` is killed the kernel ends every process of the node and drops every
mount, interface and rule; ``down`` has only a folder and empty cgroups to remove. So there are no pid files and nothing
to clean up in order: ``init`` is found by the file that it executes, and a harness that was killed leaves a node that
the next ``up`` uses or the next ``down`` ends.

The host reaches pods and Services through one route; the node has no way out. What the host sends is let in whatever a
NetworkPolicy says, as Kubernetes lets in what a node sends to its own pods.
"""

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import string
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import requests
from requests.adapters import HTTPAdapter
from urllib3 import Retry

from tests.cluster import build
from tests.cluster.build import CACHE, run, say

NAME = "jukebox"  # of the node, its cgroup and the host's end of its link
STATE = CACHE / "node"
PROGRAMS = build.folder("node") / "k8s.io" / "kubernetes" / "cmd"
KUBECTL = PROGRAMS / "kubectl"
KUBECONFIG = STATE / "admin.kubeconfig"
# The layers in the registry, which the next node finds again, and the bytes from which on it begins with none.
LAYERS = CACHE / "registry"
MOST_LAYERS = 10e9
TRUST = STATE / "trust"  # holds nothing but the CA, as what reads a folder of them wants it
CA = TRUST / "ca.crt"

VOLUMES = "/var/lib/volumes"  # of the node

HOST, ADDRESS, RANGE = "10.213.0.1", "10.213.0.2", "10.213.0.0/16"
NAMESERVER = "10.213.3.1"  # an address of the node that policies take for that of a pod
PODS, SERVICES, API, DNS = "10.213.1.0/24", "10.213.2.0/24", "10.213.2.1", "10.213.2.10"
REGISTRY = f"{ADDRESS}:5000"
# The same images, for those who log in: a password of the tests, whose hash is in config/passwords.
GUARDED_REGISTRY = f"{ADDRESS}:5001"
REGISTRY_LOGIN = base64.b64encode(b"ada:a-password-of-the-tests").decode()
SERVER = f"https://{ADDRESS}:6443"

# Seconds to wait for what comes within a few, on a machine that may be busy: only a failure takes as long.
PATIENCE = 300
# What a server answers that is too busy or just starting: nobody has judged what it was asked. A webhook that refuses
# something "denied the request", and what else is refused has a reason of its own: Forbidden, NotFound, AlreadyExists.
BUSY = re.compile(
    "failed calling webhook|Too ?Many ?Requests|too many requests|InternalError|Internal error occurred"
    "|ServiceUnavailable|the server (is currently|was) unable|[Cc]onnection re(fused|set)|was refused -|connection lost"
    "|i/o timeout|request timed out|TLS handshake timeout|unexpected EOF|context deadline exceeded"
    "|Client.Timeout exceeded|leader changed|storage is \\(re\\)initializing"
)
BUSY_STATUSES = (429, 500, 502, 503, 504)
Answer = TypeVar("Answer")

# What a kubelet writes where it finds something else (pkg/kubelet/cm/container_manager_linux.go, setupKernelTunables).
KERNEL = {
    "vm/overcommit_memory": 1,
    "vm/panic_on_oom": 0,
    "kernel/panic": 10,
    "kernel/panic_on_oops": 1,
    "kernel/keys/root_maxkeys": 1_000_000,
    "kernel/keys/root_maxbytes": 25_000_000,
}
# The cache is bound to /mnt first: it may itself lie below /tmp or /var.
INIT = """
mount --bind "$0" /mnt
for folder in run tmp var; do mount --bind /mnt/node/$folder /$folder; done
for setting; do mount --bind /mnt/node/kernel/$setting /proc/sys/$setting; done
mount --make-rshared /
exec /mnt/node/init
"""


def init() -> int | None:
    """The pid of the node's first process; None where the node is down."""
    for exe in Path("/proc").glob("[0-9]*/exe"):
        with contextlib.suppress(OSError):
            if exe.samefile(STATE / "init"):
                return int(exe.parent.name)
    return None


def processes() -> dict[str, int]:
    """Pids of the node's own processes by the name of their program (of its containers: none)."""
    first = init()
    found = {}
    for process in Path("/proc").glob("[0-9]*") if first else ():
        with contextlib.suppress(OSError):
            if (process / "ns" / "pid").samefile(f"/proc/{first}/ns/pid"):
                found[(process / "exe").readlink().name] = int(process.name)
    return found


def inside(*spaces: str) -> tuple[str, ...]:
    """The words before a command that shall run in namespaces of the node."""
    return "nsenter", f"--target={init()}", *(f"--{space}" for space in spaces), "--"


def start(program: str | Path, *arguments: str) -> None:
    """Start a program of the node unless it runs; it outlives this process, and logs to ``STATE/log``."""
    name = Path(program).name
    if name in processes():
        return
    here = str(program).replace(str(CACHE), "/mnt", 1)
    detach(*inside("mount", "net", "pid"), here, *arguments, log=name)


def detach(*command: str, log: str) -> None:
    """Start a command that a Ctrl-C here does not reach, and that outlives this process."""
    with (STATE / "log" / f"{log}.log").open("ab") as file:
        forked = ("setsid", "--fork", *command)
        subprocess.run(forked, stdin=subprocess.DEVNULL, stdout=file, stderr=file, check=True)


def wait(what: str, ready: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Wait until ``ready`` neither raises nor returns something false; raises with its last words when time is up."""
    begun = time.monotonic()
    while True:
        try:
            if ready():
                return
            last = "it is not"
        except (RuntimeError, OSError) as error:
            last = str(error)
        if pause(begun) > seconds:
            raise TimeoutError(f"{what}: not ready after {seconds:.0f} s: {last}; see {STATE / 'log'}")


def patiently(ask: Callable[[], Answer]) -> Answer:
    """What ``ask`` returns, which is called again while it raises a RuntimeError that says that the node is busy.

    After ``PATIENCE`` that error is raised, as any other is at once.
    """
    begun = time.monotonic()
    while True:
        try:
            return ask()
        except RuntimeError as error:
            if not BUSY.search(str(error)) or pause(begun) > PATIENCE:
                raise


def pause(begun: float) -> float:
    """Sleep before something is asked again; return how many seconds have passed since ``begun``."""
    passed = time.monotonic() - begun
    time.sleep(min(0.1 + passed / 10, 1))  # who asks more often keeps busy what he waits for
    return passed


def up() -> None:
    """Bring the node up, or what of it has died, until it is Ready.

    A pod runs once ``pause:1`` and its own image are in the registry.
    """
    own = build.build("node") / "jukebox.test"
    if init() is None:
        down()
        prepare(build.build("pause") / "jukebox.test" / "pause")
        begin()
    pki, admin = "/mnt/node/pki", "/mnt/node/admin.kubeconfig"

    start(build.REGISTRY, "serve", "/mnt/node/etc/registry.yaml")
    start(STATE / "guarded-registry", "serve", "/mnt/node/etc/guarded-registry.yaml")
    start("/usr/bin/containerd", "--config=/mnt/node/etc/containerd.toml")
    start(own / "etcd", "--data-dir=/var/lib/etcd", "--unsafe-no-fsync", "--log-level=warn")
    start(
        PROGRAMS / "kube-apiserver",
        "--etcd-servers=http://127.0.0.1:2379",
        f"--advertise-address={ADDRESS}",
        f"--service-cluster-ip-range={SERVICES}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged",
        f"--client-ca-file={pki}/ca.crt",
        f"--tls-cert-file={pki}/server.crt",
        f"--tls-private-key-file={pki}/server.key",
        f"--kubelet-client-certificate={pki}/admin.crt",
        f"--kubelet-client-key={pki}/admin.key",
        "--kubelet-preferred-address-types=InternalIP",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={pki}/server.crt",
        f"--service-account-signing-key-file={pki}/server.key",
    )
    wait("registry", lambda: session().get(f"https://{REGISTRY}/v2/", timeout=5).ok)
    wait("API server", lambda: kubectl("get", "--raw=/readyz"))
    start(
        PROGRAMS / "kube-controller-manager",
        f"--kubeconfig={admin}",
        "--leader-elect=false",
        f"--root-ca-file={pki}/ca.crt",
        f"--service-account-private-key-file={pki}/server.key",
        "--use-service-account-credentials",
        "--flex-volume-plugin-dir=/var/lib/kubelet/volume-plugins",  # else one in this machine's /usr
    )
    start(PROGRAMS / "kube-scheduler", f"--kubeconfig={admin}", "--leader-elect=false")
    start(
        PROGRAMS / "kubelet",
        "--config=/mnt/node/etc/kubelet.yaml",
        "--kubeconfig=/mnt/node/node.kubeconfig",
        f"--hostname-override={NAME}",
        f"--node-ip={ADDRESS}",
    )
    start(PROGRAMS / "kube-proxy", "--config=/mnt/node/etc/kube-proxy.yaml")
    start(own / "coredns", "-conf", "/mnt/node/etc/Corefile")
    start(own / "provisioner", f"--kubeconfig={admin}", f"--folder={VOLUMES}", f"--node={NAME}")
    start(
        own / "policies",
        f"--kubeconfig={admin}",
        f"--node={NAME}",
        "--cni=/var/lib/cni",
        "--network=pods",
        f"--dns={NAMESERVER}",
    )
    kubectl("apply", "--server-side", f"--filename={STATE}/etc/base.yaml")
    wait("kubelet", lambda: kubectl("get", f"--raw=/api/v1/nodes/{NAME}/proxy/healthz"))
    wait("node", lambda: kubectl("wait", "--for=condition=Ready", f"node/{NAME}", "--timeout=1s"))
    wait("service account", lambda: kubectl("get", "serviceaccount", "default"))
    wait("names", lambda: session().get(f"http://{ADDRESS}:8181/ready", timeout=5).ok)
    # Until it listens, no pod's connection begins.
    wait("policies", Path(f"/proc/{init()}/net/netfilter/nfnetlink_queue").read_text)


def session() -> requests.Session:
    """HTTP to the node's servers, which are asked again for up to ``PATIENCE`` while they are busy."""
    made = requests.Session()
    made.trust_env = False  # neither the user's proxy nor his CA bundle is for the node
    made.verify = str(CA)
    again = Retry(
        total=PATIENCE,
        read=PATIENCE // 60,  # each of which may take a minute
        backoff_factor=0.1,
        backoff_max=1,
        allowed_methods=None,  # all of them
        status_forcelist=BUSY_STATUSES,
        raise_on_status=False,
    )
    for scheme in ("http://", "https://"):
        made.mount(scheme, HTTPAdapter(max_retries=again))
    return made


def kubectl(*arguments: str) -> str:
    return patiently(lambda: run(KUBECTL, f"--kubeconfig={KUBECONFIG}", *arguments))


def prepare(pause: Path) -> None:
    """Write what the node's programs read: keys, kubeconfigs, settings."""
    for name in ("run", "tmp", "var/lib", "var/log", "log", "pki", "trust", "etc/cni"):
        (STATE / name).mkdir(parents=True)
    if sum(file.stat().st_size for file in LAYERS.rglob("*") if file.is_file()) > MOST_LAYERS:
        shutil.rmtree(LAYERS)
    LAYERS.mkdir(exist_ok=True)
    (STATE / "tmp").chmod(0o1777)
    (STATE / "var" / "run").symlink_to("/run")
    for setting, value in KERNEL.items():
        file = STATE / "kernel" / setting
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{value}\n")
    shutil.copy(pause, STATE / "init")
    shutil.copy(build.REGISTRY, STATE / "guarded-registry")  # a process is known by the name of its program

    certificate("ca", "/CN=jukebox test CA")
    shutil.copy(STATE / "pki" / "ca.crt", CA)
    names = [f"IP:{ip}" for ip in ("127.0.0.1", ADDRESS, API)]
    names += [f"DNS:kubernetes.default{rest}" for rest in ("", ".svc", ".svc.cluster.local")]
    certificate("server", "/CN=server", f"subjectAltName={','.join(names)}")
    certificate("admin", "/O=system:masters/CN=admin")
    certificate("node", f"/O=system:nodes/CN=system:node:{NAME}")
    kubeconfig("admin")
    kubeconfig("node")

    values = {"NAME": NAME, "ADDRESS": ADDRESS, "REGISTRY": REGISTRY, "PODS": PODS, "DNS": DNS}
    values["NAMESERVER"] = NAMESERVER
    values["GUARDED_REGISTRY"] = GUARDED_REGISTRY
    places = {
        "cni.conflist": "cni/cni.conflist",
        "hosts.toml": "certs.d/_default/hosts.toml",
        "guarded-hosts.toml": f"certs.d/{GUARDED_REGISTRY}/hosts.toml",
    }
    for file in (Path(__file__).parent / "config").iterdir():
        text = string.Template(file.read_text()).safe_substitute(values)
        place = STATE / "etc" / places.get(file.name, file.name)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)


def certificate(name: str, subject: str, *extensions: str) -> None:
    """A key and its certificate in ``STATE/pki``, signed by the CA there; ``ca`` signs itself."""
    pki = STATE / "pki"
    config = pki / "openssl.cnf"
    config.write_text("[req]\ndistinguished_name = dn\n[dn]\n")
    extensions += (f"basicConstraints=critical,CA:{'TRUE' if name == 'ca' else 'FALSE'}",)
    signer = () if name == "ca" else ("-CA", pki / "ca.crt", "-CAkey", pki / "ca.key")
    run(
        *(
            "openssl",
            "req",
            "-x509",
            "-config",
            config,
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
        ),
        *("-days", "365", "-subj", subject, "-keyout", pki / f"{name}.key", "-out", pki / f"{name}.crt", *signer),
        *(word for extension in extensions for word in ("-addext", extension)),
    )


def kubeconfig(user: str) -> None:
    """``STATE/<user>.kubeconfig``, whole in itself, for use on the host and in the node."""

    def data(name: str) -> str:
        return base64.b64encode((STATE / "pki" / name).read_bytes()).decode()

    file = STATE / f"{user}.kubeconfig"
    file.touch(mode=0o600)
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": NAME,
        "contexts": [{"name": NAME, "context": {"cluster": NAME, "user": user}}],
        "clusters": [{"name": NAME, "cluster": {"server": SERVER, "certificate-authority-data": data("ca.crt")}}],
        "users": [
            {
                "name": user,
                "user": {
                    "client-certificate-data": data(f"{user}.crt"),
                    "client-key-data": data(f"{user}.key"),
                },
            }
        ],
    }
    file.write_text(json.dumps(config, indent=2))


def begin() -> None:
    """Start ``init`` in new namespaces, and link its network with the host's."""
    spaces = ("--pid", "--fork", "--mount-proc", "--mount", "--propagation=slave", "--net")
    detach("unshare", *spaces, "sh", "-eu", "-c", INIT, str(CACHE), *KERNEL, log="init")
    wait("namespaces", init)
    for hierarchy in cgroups():
        hierarchy.mkdir(exist_ok=True)
    run("ip", "link", "add", NAME, "type", "veth", "peer", "name", "eth0", "netns", str(init()))
    run("ip", "address", "add", f"{HOST}/30", "dev", NAME)
    run("ip", "link", "set", NAME, "up")
    run("ip", "route", "add", RANGE, "via", ADDRESS)
    run(*inside("net"), "ip", "link", "set", "lo", "up")
    run(*inside("net"), "ip", "address", "add", f"{ADDRESS}/30", "dev", "eth0")
    run(*inside("net"), "ip", "address", "add", f"{NAMESERVER}/32", "dev", "lo")
    run(*inside("net"), "ip", "link", "set", "eth0", "up")
    # The host does not forward; but without a route the Services' addresses would not even reach the node's rules.
    run(*inside("net"), "ip", "route", "add", "default", "via", HOST)
    run(*inside("net"), "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
    # What comes before kube-proxy knows a Service is refused, not lost: its sender may try again at once, and not after
    # a minute only.
    rule = ("--protocol", "tcp", "--destination", SERVICES, "--jump", "REJECT", "--reject-with", "tcp-reset")
    for chain in ("FORWARD", "OUTPUT"):
        run(*inside("mount", "net"), "iptables", "--append", chain, *rule)
    # `policies` judges each new connection of a pod: with another, the outside or the node. What goes to a Service has
    # its pod's address by then; what comes from the node itself passes neither chain.
    for chain, which in (("FORWARD", ("!", "--source", HOST)), ("INPUT", ("--source", PODS))):
        new = ("--match", "conntrack", "--ctstate", "NEW", *which, "--jump", "NFQUEUE", "--queue-num", "100")
        run(*inside("mount", "net"), "iptables", "--table", "mangle", "--append", chain, *new)


def cgroups() -> list[Path]:
    """The node's cgroup, in the one hierarchy of cgroup v2 or in each of v1."""
    root = Path("/sys/fs/cgroup")
    if (root / "cgroup.controllers").exists():
        return [root / NAME]
    return [path / NAME for path in root.iterdir() if path.is_dir() and not path.is_symlink()]


def down() -> None:
    """End the node and remove all that it made on this machine, whatever state it is in; nothing where it is down."""
    first = init()
    if first:
        say("taking the node down")
        spaces = [Path(f"/proc/{first}/ns/{space}").readlink() for space in ("pid", "mnt", "net")]
        os.kill(first, signal.SIGKILL)
        wait("end of the node", lambda: not any(space in members() for space in spaces))
    # It goes with the node's network, and the route with it.
    link = Path("/sys/class/net", NAME)
    wait(f"end of the interface {NAME} (does a node of another XDG_CACHE_HOME run?)", lambda: not link.exists(), 10)
    for hierarchy in cgroups():
        wait("end of its cgroups", partial(remove_groups, hierarchy))
    run("rm", "--recursive", "--force", STATE)  # a third of the time that Python would take


def remove_groups(top: Path) -> bool:
    for group, _, _ in os.walk(top, topdown=False):
        Path(group).rmdir()
    return True


def members() -> set[Path]:
    """All namespaces in which some process is."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/ns/*"):
        with contextlib.suppress(OSError):
            found.add(link.readlink())
    return found
