"""Scripts that attack or have accidents, and what must come of each.

Data for test_sandbox_conformance.py. A script prints ESCAPED when it did what it must
not. In scripts, @LABELS@, @HOST_FILE@ and @SECRET@ stand for an absolute path of
hidden labels, of another file of the host that may not be changed, and the name of
an environment variable that holds a secret.
"""

import dataclasses

from mlagent_jax.types import Outcome

INFO = Outcome.INFO
ERROR = Outcome.SCRIPT_ERROR
TIMEOUT = Outcome.TIMEOUT
MEMORY = Outcome.OUT_OF_MEMORY
LIMIT = Outcome.RESOURCE_LIMIT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One script.

    Attributes:
      name: of the test.
      script: its source.
      outcomes: what may come of it.
      stdout: expected text in standard output.
      submission: expected content of the submission; None means that there is none.
      missing: a path that must not be among the files afterwards.
      event: start of an integrity event that must be there.
      task: which limits apply: "plain", or "short" (1 s of wall and CPU).
      gap: why the weak backend may fail the case; "" if it may not.
      is_fork_bomb: True if it must not run where the kernel does not limit the number
        of processes.
      needs_landlock: True if the weak backend passes on kernels with Landlock only.
    """

    name: str
    script: str
    outcomes: tuple[Outcome, ...] = (INFO,)
    stdout: str = ""
    submission: bytes | None = None
    missing: str = ""
    event: str = ""
    task: str = "plain"
    gap: str = ""
    is_fork_bomb: bool = False
    needs_landlock: bool = False


_TRY = """
import ctypes, os, sys
def attempt(action):
    try:
        action()
    except BaseException as e:
        print('refused', type(e).__name__)
    else:
        print('ESCAPED')
"""

FILES = (
    Case(
        name="labels_by_absolute_path",
        script=_TRY + "attempt(lambda: open('@LABELS@').read())",
        stdout="refused",
        event="held_back:plain/private/labels.csv",
        needs_landlock=True,
    ),
    Case(
        name="labels_by_parent_folders",
        script=_TRY + "attempt(lambda: open('../' * 30 + '@LABELS@').read())",
        stdout="refused",
        needs_landlock=True,
    ),
    Case(
        name="symlink_to_labels_is_not_collected",
        script="import os\nos.symlink('@LABELS@', 'out.txt')",
        missing="out.txt",
        event="skipped_file:out.txt",
    ),
    Case(
        name="symlink_to_a_folder_is_not_followed",
        script="import os\nos.symlink('/usr', 'folder')",
        missing="folder",
    ),
    Case(
        name="hard_link_to_labels_is_not_collected",
        script="import os\nopen('a', 'w').close()\nos.link('a', 'b')\n"
        "try: os.link('@LABELS@', 'out.txt')\nexcept OSError: pass",
        missing="out.txt",
        event="skipped_file:a",
    ),
    Case(
        name="data_is_read_only",
        script="open('data/train.csv', 'w')",
        outcomes=(ERROR,),
        event="protected_file:data/train.csv",
    ),
    Case(
        name="data_cannot_be_replaced",
        script=_TRY + "attempt(lambda: os.rename('data', 'old'))\n"
        "attempt(lambda: os.unlink('data/train.csv'))",
        stdout="refused",
        gap="the run's own copy of the data can be changed",
    ),
    Case(
        name="packages_are_read_only",
        script=_TRY + "import numpy\nattempt(lambda: open(numpy.__file__, 'a'))\n"
        "folder = os.path.dirname(os.path.dirname(numpy.__file__))\n"
        "attempt(lambda: open(folder + '/sitecustomize.py', 'w'))\n"
        "attempt(lambda: open(sys.executable, 'ab'))\n"
        "attempt(lambda: open(os.__file__, 'a'))",
        stdout="refused",
        needs_landlock=True,
    ),
    Case(
        name="system_and_root_are_read_only",
        script=_TRY + "for p in ('/usr', '/etc', '/', '/dev', '/mlagent-sandbox', "
        "'/mlagent-sandbox/tasks', '/mlagent-sandbox/zygote'):\n    p += '/x'\n"
        "    attempt(lambda: open(p, 'w'))",
        stdout="refused",
        needs_landlock=True,
    ),
    Case(
        name="host_file_cannot_be_changed",
        script=_TRY + "attempt(lambda: open('@HOST_FILE@', 'a'))\n"
        "attempt(lambda: os.chmod('@HOST_FILE@', 0))\n"
        "attempt(lambda: os.unlink('@HOST_FILE@'))",
        stdout="refused",
        needs_landlock=True,
    ),
    Case(
        name="fifo_as_submission",
        script="import os\nos.mkfifo('submission.csv')",
        event="not_a_file:submission.csv",
    ),
    Case(
        name="folder_as_submission",
        script="import os\nos.mkdir('submission.csv')",
        event="not_a_file:submission.csv",
    ),
    Case(
        name="symlink_as_submission",
        script="import os\nos.symlink('/etc/passwd', 'submission.csv')",
        event="not_a_file:submission.csv",
    ),
    Case(
        name="deletes_itself",
        script="import os\nos.unlink('train.py')\nprint(os.listdir('.'))",
        stdout="data",
        missing="train.py",
    ),
    Case(
        name="strange_file_names",
        script="for name in (b'-rf', b'a\\nb', b'\\xff\\xfe', b'x' * 255):\n"
        "    open(name, 'w').close()",
        event="skipped_file:",
    ),
    Case(
        name="thousand_nested_folders",
        script="import os\nfor _ in range(1200):\n    os.mkdir('d')\n    os.chdir('d')",
        outcomes=(LIMIT,),
    ),
    Case(
        name="folder_without_permissions",
        script="import os\nos.mkdir('d', 0)\nopen('f', 'w').close()",
        missing="d",
    ),
)

PROCESSES = (
    Case(
        name="environment_of_other_processes",
        script="import glob\nfor p in glob.glob('/proc/[0-9]*/environ'):\n"
        "    try: text = open(p, 'rb').read()\n"
        "    except OSError: continue\n"
        "    if b'@SECRET@' in text: print('ESCAPED', p)",
        needs_landlock=True,
    ),
    Case(
        name="memory_of_other_processes",
        script="import glob, os\nown = {'self', 'thread-self', str(os.getpid())}\n"
        "for p in glob.glob('/proc/*/mem'):\n"
        "    if p.split('/')[2] in own: continue\n"
        "    try: open(p, 'r+b').close()\n"
        "    except OSError: continue\n"
        "    print('ESCAPED', p)",
        needs_landlock=True,
    ),
    Case(
        name="kill_everybody",
        script="import os\ntry: os.kill(-1, 9)\nexcept OSError: pass\nprint('alive')",
        stdout="alive",
    ),
    Case(
        name="kill_parent_and_its_group",
        script="import os\nfor pid in (os.getppid(), -os.getppid()):\n"
        "    if pid == 0: continue\n"
        "    try: os.kill(pid, 9)\n    except OSError: continue\n"
        "    print('ESCAPED')",
    ),
    Case(
        name="fork_bomb",
        # Without a kernel limit on processes this takes a whole machine down.
        script="import os\nwhile True: os.fork()",
        outcomes=(LIMIT,),
        is_fork_bomb=True,
    ),
    Case(
        name="shell_fork_bomb",
        # Without a kernel limit on processes this takes a whole machine down.
        script="import os\nos.execv('/bin/sh', ['sh', '-c', 'f() { f | f & }; f; "
        "sleep 1'])",
        outcomes=(LIMIT, ERROR, INFO),
        is_fork_bomb=True,
    ),
    Case(
        name="many_threads",
        script="import threading, time\nfor _ in range(100):\n"
        "    threading.Thread(target=time.sleep, args=(1,)).start()",
        outcomes=(LIMIT,),
    ),
    Case(
        name="daemon_cannot_change_the_submission",
        script="import ctypes, os, time\nopen('submission.csv', 'w').write('first')\n"
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        "        ctypes.CDLL(None).prctl(15, b'evildaemon', 0, 0, 0)\n"
        "        for fd in range(3): os.close(fd)\n"
        "        time.sleep(0.3)\n"
        "        open('submission.csv', 'w').write('second')\n"
        "        time.sleep(60)\n    os._exit(0)\nos.wait()",
        submission=b"first",
    ),
    Case(
        name="daemon_that_holds_the_pipes",
        script="import os, time\nif os.fork() == 0:\n    os.setsid()\n"
        "    time.sleep(60)",
    ),
    Case(
        name="stops_itself",
        script="import os, signal, time\nos.kill(os.getpid(), signal.SIGSTOP)\n"
        "time.sleep(60)",
        outcomes=(TIMEOUT,),
        task="short",
    ),
    Case(
        name="inherited_descriptors",
        script="import os\nfor fd in range(3, 64):\n"
        "    try: os.write(fd, b'x' * 64)\n    except OSError: continue\n"
        "    print('ESCAPED', fd)",
    ),
    Case(
        name="system_calls_of_attacks",
        script=_TRY + "c = ctypes.CDLL(None)\n"
        "NEW = 0x10000000\n"
        "calls = [c.ptrace(16, 1, 0, 0), c.mount(b'x', b'/tmp', b'tmpfs', 0, None),\n"
        "         c.umount2(b'/proc', 2), c.unshare(NEW), c.unshare(0x20000),\n"
        "         c.chroot(b'.'), c.sethostname(b'x', 1),\n"
        "         c.syscall(425, 8, 0), c.setuid(0) if os.getuid() else -1]\n"
        "print(calls, 'ESCAPED' if any(r != -1 for r in calls) else 'refused')",
        stdout="refused",
    ),
    Case(
        name="no_capabilities",
        script="text = open('/proc/self/status').read()\n"
        "caps = [x.split()[1] for x in text.splitlines() if x.startswith(('CapPrm',"
        " 'CapEff', 'CapInh', 'CapAmb'))]\n"
        "print('ESCAPED' if any(int(c, 16) for c in caps) else 'none')",
        stdout="none",
        gap="where packages lie in root's home, root keeps the right to read files",
    ),
    Case(
        name="kernel_settings",
        script=_TRY + "for p in ('/proc/sys/kernel/core_pattern', "
        "'/proc/sysrq-trigger', '/proc/self/oom_score_adj'):\n"
        "    attempt(lambda: open(p, 'w').write('0'))",
        stdout="refused",
        needs_landlock=True,
    ),
)

LIMITS = (
    Case(
        name="memory_bomb",
        script="a = []\nwhile True: a.append(bytearray(1 << 24))",
        outcomes=(MEMORY,),
    ),
    Case(
        name="huge_array",
        script="import numpy as np\nnp.zeros(1 << 40)",
        outcomes=(MEMORY,),
    ),
    Case(
        name="memory_bomb_of_several_processes",
        script="import os, time\nfor _ in range(4):\n    if os.fork() == 0:\n"
        "        a = bytearray(os.urandom(1 << 20)) * 200\n        time.sleep(9)\n"
        "os.wait()",
        outcomes=(MEMORY,),
    ),
    Case(
        name="endless_output",
        script="import os\nwhile True:\n    os.write(1, b'x' * 9999)\n"
        "    os.write(2, b'y' * 9999)",
        outcomes=(LIMIT,),
        stdout="bytes cut",
    ),
    Case(
        name="endless_progress_bar",
        script="import sys\nwhile True:\n    sys.stderr.write('x')\n"
        "    sys.stdout.write('y' * 100)",
        outcomes=(LIMIT, TIMEOUT),
        task="short",
    ),
    Case(
        name="endless_file",
        script="f = open('big', 'wb')\nwhile True: f.write(b'x' * (1 << 20))",
        outcomes=(LIMIT,),
        missing="big",
    ),
    Case(
        name="sparse_file",
        script="open('big', 'wb').truncate(1 << 40)",
        outcomes=(LIMIT,),
        missing="big",
    ),
    Case(
        name="full_workspace",
        script="import time\nfor i in range(99):\n"
        "    open(f'f{i}', 'wb').write(b'x' * (4 << 20))\n"
        "    time.sleep(0.02)",
        outcomes=(LIMIT,),
    ),
    Case(
        name="many_files",
        script="for i in range(2000): open(f'f{i}', 'w').close()",
        outcomes=(LIMIT,),
        missing="f0",
    ),
    Case(
        name="many_descriptors",
        script="a = [open('train.py') for _ in range(5000)]",
        outcomes=(LIMIT,),
    ),
    Case(
        name="endless_loop",
        script="while True: pass",
        outcomes=(TIMEOUT,),
        task="short",
    ),
    Case(
        name="cpu_of_several_processes",
        script="import os\nfor _ in range(3): os.fork()\nwhile True: pass",
        outcomes=(TIMEOUT,),
        task="cpu",
    ),
    Case(
        name="endless_sleep",
        script="import time\nprint('begun')\ntime.sleep(60)",
        outcomes=(TIMEOUT,),
        stdout="begun",
        task="short",
    ),
    Case(
        name="endless_exit_function",
        script="import atexit, time\natexit.register(time.sleep, 60)",
        outcomes=(TIMEOUT,),
        task="short",
    ),
    Case(
        name="endless_thread",
        script="import threading, time\n"
        "threading.Thread(target=time.sleep, args=(60,)).start()",
        outcomes=(TIMEOUT,),
        task="short",
    ),
    Case(
        name="endless_recursion_in_c",
        script="import sys\nsys.setrecursionlimit(1 << 30)\n"
        "def f(_): return sorted([0], key=f)\nf(0)",
        outcomes=(ERROR, MEMORY),
    ),
)

ENDINGS = (
    Case(name="silent_success", script="x = 1"),
    Case(name="exit_status", script="import sys\nsys.exit(3)", outcomes=(ERROR,)),
    Case(name="exit_text", script="raise SystemExit('no')", outcomes=(ERROR,)),
    Case(
        name="exit_midway",
        script="import os\nopen('submission.csv', 'w').write('early')\nos._exit(0)",
        submission=None,
    ),
    Case(
        name="exit_function_replaced",
        script="import os, sys\nos._exit = print\nsys.exit(0)",
    ),
    Case(
        name="forgotten_file_is_written",
        script="f = open('submission.csv', 'w')\nf.write('complete')",
        submission=b"complete",
    ),
    Case(
        name="file_in_a_cycle_is_written",
        script="class A: pass\na = A()\na.me = a\na.f = open('submission.csv', 'w')\n"
        "a.f.write('complete')",
        submission=b"complete",
    ),
    Case(
        name="huge_exception_text",
        script="raise ValueError('x' * (1 << 26))",
        outcomes=(LIMIT,),
    ),
    Case(
        name="invalid_utf8_output",
        script="import sys\nsys.stdout.buffer.write(b'\\xff\\xfe ok')",
        stdout="\ufffd\ufffd ok",
    ),
    Case(name="syntax_error", script="def", outcomes=(ERROR,)),
    Case(name="null_byte", script="x = 1\0", outcomes=(ERROR,)),
    Case(name="reads_stdin", script="input()", outcomes=(ERROR,)),
    Case(
        name="closes_its_streams",
        script="import os, sys\nsys.stdout.close()\nos.close(1)\nos.close(2)",
        outcomes=(INFO, ERROR),
    ),
    Case(
        name="crash",
        script="import ctypes\nctypes.string_at(0)",
        outcomes=(ERROR,),
    ),
    Case(
        name="secrets_of_the_environment",
        script="import os\nprint('ESCAPED' if '@SECRET@' in str(os.environ) else 'no')",
        stdout="no",
    ),
)

NETWORK = (
    Case(
        name="connect",
        script=_TRY + "import socket\n"
        "attempt(lambda: socket.create_connection(('1.1.1.1', 53), 2))\n"
        "attempt(lambda: socket.create_connection(('127.0.0.1', @PORT@), 2))",
        stdout="refused",
    ),
    Case(
        name="resolve",
        script=_TRY + "import socket\n"
        "attempt(lambda: socket.getaddrinfo('example.com', 80))",
        stdout="refused",
    ),
    Case(
        name="packets_and_virtual_machine_sockets",
        script=_TRY + "import socket\n"
        "attempt(lambda: socket.socket(17, socket.SOCK_RAW))\n"
        "attempt(lambda: socket.socket(40, socket.SOCK_STREAM))\n"
        "attempt(lambda: socket.socket(38, socket.SOCK_SEQPACKET))",
        stdout="refused",
    ),
)

TRACES = (
    Case(
        name="labels_through_other_processes",
        script=_TRY + "own = {'self', 'thread-self', str(os.getpid())}\n"
        "numbers = [n for n in os.listdir('/proc') if n.isdigit() and n not in own]\n"
        "for n in [*numbers, str(os.getppid())]:\n"
        "    for part in ('root', 'cwd', 'task/' + n + '/root'):\n"
        "        attempt(lambda: open(f'/proc/{n}/{part}@LABELS@').read())\n"
        "    attempt(lambda: os.listdir(f'/proc/{n}/fd'))\n"
        "print('refused')",
        stdout="refused",
        event="outside_path:/proc/",
        gap="the machine's processes are to be seen; Landlock guards what they hold",
    ),
    Case(
        name="runs_of_others",
        script=_TRY + "import glob, tempfile\n"
        "mine = os.path.dirname(os.getcwd())\n"
        "for p in glob.glob('/tmp/mlagent-*/*') + glob.glob('/tmp/pytest-*/*'):\n"
        "    if not mine.startswith(p) and not p.startswith(mine):\n"
        "        attempt(lambda: os.listdir(p))\n"
        "attempt(lambda: os.listdir(os.path.dirname('@HOST_FILE@')))",
        stdout="refused",
        needs_landlock=True,
    ),
    Case(
        name="labels_of_another_task",
        script=_TRY + "attempt(lambda: os.listdir('/mlagent-sandbox/tasks/1'))\n"
        "attempt(lambda: os.listdir(os.path.dirname('@LABELS@')))",
        stdout="refused",
        event="held_back:plain/private/.",
        needs_landlock=True,
    ),
    Case(
        name="descriptors_of_the_parent",
        script=_TRY + "parent = os.getppid()\n"
        "for fd in range(20):\n"
        "    try: text = os.readlink(f'/proc/{parent}/fd/{fd}')\n"
        "    except OSError: continue\n"
        "    print('ESCAPED', text)",
        needs_landlock=True,
    ),
    Case(
        name="memory_tracing",
        script=_TRY + "c = ctypes.CDLL(None, use_errno=True)\n"
        "parent = max(1, os.getppid())\n"
        "buffer = ctypes.create_string_buffer(64)\n"
        "calls = [c.ptrace(16, parent, 0, 0), c.ptrace(0x4206, parent, 0, 0),\n"
        "         c.syscall(310, parent, buffer, 1, buffer, 1, 0),\n"
        "         c.syscall(438, 3, 0, 0)]\n"
        "print(calls, 'ESCAPED' if any(r != -1 for r in calls) else 'refused')",
        stdout="refused",
    ),
    Case(
        name="keyrings",
        script=_TRY + "c = ctypes.CDLL(None, use_errno=True)\n"
        "calls = [c.syscall(248, b'user', b'name', b'x', 1, -3),\n"
        "         c.syscall(249, b'user', b'name', None, -3), c.syscall(250, 0, -3)]\n"
        "print(calls, 'ESCAPED' if any(r != -1 for r in calls) else 'refused')",
        stdout="refused",
    ),
    Case(
        name="clocks_cannot_be_set",
        script=_TRY + "import time\n"
        "attempt(lambda: time.clock_settime(time.CLOCK_REALTIME, 0))\n"
        "time.time = time.monotonic = time.perf_counter = lambda: 0.0\n"
        "import signal\n"
        "for pid in {1, os.getppid()} - {0, os.getpid()}:\n"
        "    attempt(lambda: os.kill(pid, signal.SIGSTOP))\n"
        "end = os.times().elapsed + 0.3\n"
        "while os.times().elapsed < end: pass",
        stdout="refused",
    ),
    Case(
        name="start_up_files_of_interpreters",
        script=_TRY + "import site, subprocess\n"
        "folders = site.getsitepackages() + [os.path.dirname(os.__file__)]\n"
        "for name in ('sitecustomize.py', 'usercustomize.py', 'x.pth'):\n"
        "    for folder in folders:\n"
        "        attempt(lambda: open(f'{folder}/{name}', 'w'))",
        stdout="refused",
        event="protected_file:/",
        needs_landlock=True,
    ),
    Case(
        name="device_as_submission",
        script=_TRY + "import stat\n"
        "attempt(lambda: os.mknod('submission.csv', 0o600 | stat.S_IFCHR, "
        "os.makedev(1, 5)))",
        stdout="refused",
    ),
    Case(
        name="socket_as_submission",
        script="import socket\ns = socket.socket(socket.AF_UNIX)\n"
        "s.bind('submission.csv')",
        event="not_a_file:submission.csv",
    ),
    Case(
        name="huge_submission",
        script="f = open('submission.csv', 'wb')\n"
        "while True: f.write(b'x' * (1 << 20))",
        outcomes=(LIMIT,),
    ),
    Case(
        name="submission_linked_to_the_data",
        script=_TRY + "os.symlink('data/train.csv', 'submission.csv')\n"
        "print('refused')",
        event="not_a_file:submission.csv",
    ),
    Case(
        name="inodes_run_out",
        script="for i in range(20_000):\n    open(f'/tmp/f{i}', 'w').close()",
        outcomes=(LIMIT,),
        gap="the number of files is looked at after the run only",
    ),
    Case(
        name="abstract_sockets",
        script=_TRY + "import socket\n"
        "s = socket.socket(socket.AF_UNIX)\n"
        "attempt(lambda: s.connect('\\0@ABSTRACT@'))",
        stdout="refused",
        needs_landlock=True,
    ),
    Case(
        name="netlink_tells_nothing",
        script="import socket\n"
        "try: s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)\n"
        "except OSError: print('refused')\n"
        "else: print('refused', {n for _, n in socket.if_nameindex()} - {'lo'} or '')\n"
        "if os_names := {n for _, n in socket.if_nameindex()} - {'lo'}:\n"
        "    print('ESCAPED', os_names)",
        outcomes=(INFO, ERROR),
        stdout="refused",
    ),
    Case(
        name="reads_outside_are_noted",
        script=_TRY + "attempt(lambda: open('/kaggle/input/train.csv').read())\n"
        "attempt(lambda: os.listdir('../../nowhere'))",
        stdout="refused",
        event="outside_path:/kaggle/input/train.csv",
    ),
    Case(
        name="changes_of_data_are_noted_though_caught",
        script=_TRY + "attempt(lambda: open('data/train.csv', 'a'))\n"
        "attempt(lambda: os.remove('data/train.csv'))",
        event="protected_file:data/train.csv",
        gap="the run's own copy of the data can be changed",
    ),
)

LEGITIMATE = (
    Case(
        name="reads_data_and_writes_submission",
        script="import pandas as pd\nd = pd.read_csv('data/train.csv')\n"
        "d.to_csv('submission.csv', index=False)\nprint(__name__, len(d))",
        stdout="__main__ 1",
        submission=b"a,b\n1,2\n",
    ),
    Case(
        name="worker_processes",
        script="import multiprocessing as mp\ndef f(x): return x * x\n"
        "if __name__ == '__main__':\n    with mp.Pool(2) as pool:\n"
        "        print(pool.map(f, range(4)))",
        stdout="[0, 1, 4, 9]",
    ),
    Case(
        name="parallel_sklearn",
        script="import numpy as np\nfrom sklearn.linear_model import Ridge\n"
        "from sklearn.model_selection import cross_val_score\n"
        "x = np.arange(40.0).reshape(20, 2)\n"
        "print(len(cross_val_score(Ridge(), x, x[:, 0], cv=4, n_jobs=-1)))",
        stdout="4",
    ),
    Case(
        name="another_interpreter",
        script="import subprocess, sys\nprint(subprocess.run([sys.executable, '-c', "
        "'import numpy; print(numpy.pi)'], capture_output=True, text=True).stdout)",
        stdout="3.14",
    ),
    Case(
        name="helper_module_and_pickle",
        script="import pickle\nclass A: pass\n"
        "open('h.py', 'w').write('VALUE = 7')\nimport h\n"
        "print(h.VALUE, type(pickle.loads(pickle.dumps(A()))) is A, __file__[-8:])",
        stdout="7 True train.py",
    ),
)

CASES = (
    *FILES,
    *PROCESSES,
    *LIMITS,
    *ENDINGS,
    *NETWORK,
    *TRACES,
    *LEGITIMATE,
)
