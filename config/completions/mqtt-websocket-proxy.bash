# Completions of mqtt-websocket-proxy for bash. Made from --help by tests/manual.rs.

_mqtt_websocket_proxy() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} command=${COMP_WORDS[1]} words
    COMPREPLY=()
    case $command:$before in
        *:-c | *:--config) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
        *:-l | *:--log-level) mapfile -t COMPREPLY < <(compgen -W 'off error warn info debug trace' -- "$word"); return ;;
        *:-p | *:--pid) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
        *:--lang) return ;;
        demo:--seconds) return ;;
        demo:--lang) return ;;
        init:-c | init:--config) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
        init:--server) return ;;
        init:--address) return ;;
        init:--macs) return ;;
        init:--lang) return ;;
        probe:--key) return ;;
        probe:--mac) return ;;
        probe:--uuid) return ;;
        probe:--group) return ;;
        probe:--client-id) return ;;
        probe:--user-name) return ;;
        probe:--password) return ;;
        probe:--ca-file) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
        probe:--seconds) return ;;
        probe:--packets) return ;;
        probe:--timeout) return ;;
        probe:--lang) return ;;
        check:-c | check:--config) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
        check:--mac) return ;;
        check:--uuid) return ;;
        check:--timeout) return ;;
        check:--lang) return ;;
        credentials:--mac) return ;;
        credentials:--uuid) return ;;
        credentials:--group) return ;;
        credentials:--key) return ;;
        credentials:--endpoint) return ;;
        token:-c | token:--config) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
        token:--lang) return ;;
        health:-c | health:--config) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
        drain:--within) return ;;
        drain:-c | drain:--config) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    esac
    case $command in
        demo) words='--seconds --lang -h --help' ;;
        init) words='-c --config --server --address --macs --yes --json --lang -h --help' ;;
        probe) words='--key --mac --uuid --group --client-id --user-name --password --tls --ca-file --seconds --packets --no-pause --timeout --json --lang -h --help' ;;
        check) words='-c --config --migrate --mac --uuid --timeout --json --lang -h --help' ;;
        credentials) words='--mac --uuid --group --key --endpoint -h --help' ;;
        token) words='-c --config --json --lang -h --help' ;;
        health) words='-c --config --ready -h --help' ;;
        drain) words='--within --status -c --config -h --help' ;;
        *) words='demo init probe check credentials token health drain -c --config -l --log-level -p --pid --lang -v --version -h --help' ;;
    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
}

complete -F _mqtt_websocket_proxy mqtt-websocket-proxy
