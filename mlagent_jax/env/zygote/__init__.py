"""The program that runs inside a sandbox; `env.sandbox` starts it.

A zygote is a warm interpreter: it imports the usual libraries once and then forks
a fresh process for every script, so that a step costs milliseconds instead of the
seconds that importing scikit-learn takes. This package is mounted alone into the
sandbox, where the rest of the project does not exist; hence it uses the standard
library only and imports its own modules relatively.

  main        imports the libraries, then one fork a request
  supervisor  one run: prepare, fork the script, watch, kill, collect, answer
  script      the script's process: becomes an ordinary `python script.py`
  namespaces  confinement by Linux namespaces (backend "bubblewrap")
  processes   the weak confinement without them (backend "process")
  map_users   for "bubblewrap" as root: makes scripts another user
  landlock    for "process": which files may be used, where the kernel can say so
  confine     what both share: resource limits, capabilities, system calls
  syscall_filter  refuses system calls that no script needs
  tripwire    which files out of its reach a script asked for
  usage       what a group of processes uses right now
  collect     the files a script left behind
  protocol    messages between host and zygote
"""
