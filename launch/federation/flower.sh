# shellcheck shell=bash
# What the scripts of this folder share. Sourced, never run.
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=launch/common.sh
source "$here/../common.sh"

# shellcheck disable=SC2034  # for those who source this
dry_run=false python=python3

settings() { # HOME: environment of every Flower process; its programs start others by name, so that PATH matters
  environment=(FLWR_HOME="$1" FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1)
  case $python in */*) environment+=(PATH="$(dirname "$python"):$PATH") ;; esac
}

shown() { # COMMAND ...: as --dry-run prints it, for a shell with a PATH of its own
  local word line=''
  for word in "$@"; do
    # only what `settings` put there
    if [[ $word == PATH=* && $word == "${environment[3]:-}" ]]; then
      line+=" PATH=$(one_line "$(dirname "$python")"):\"\$PATH\""
    else
      line+=" $(one_line "$word")"
    fi
  done
  printf '%s\n' "${line# }"
}

need_flower() { # before anything starts; lowcomm looks at the version
  "$python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("flwr") is None)' ||
    refuse --python "$python" "a python that has flwr" "$python -m pip install 'lowcomm[flower]'"
}

stop() { # PID ...: those that are left of what this script started
  local pid
  for pid in "$@"; do kill "$pid" 2>/dev/null || true; done
  for pid in "$@"; do wait "$pid" 2>/dev/null || true; done
}
