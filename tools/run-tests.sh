#!/usr/bin/env bash
# Runs the commands given on standard input, one a line, and ends with one line that counts the tests that they ran: passed,
# failed, ignored by their attribute, and skipped, each of which has said by name what it lacks.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
while read -r command; do
    [[ -n $command ]] || continue
    echo "== $command"
    bash -c "$command" </dev/null 2>&1 | tee -a "$log" || { status=1; break; }
done

awk '
    /^test result: / { passed += $4; failed += $6; ignored += $8 }
    / Running | Doc-tests / { binary++ }
    / skipped: / && !seen[binary, $0]++ { skipped++; sub(/^.* skipped: /, ""); reasons[$0]++ }
    END {
        for (reason in reasons) printf "skipped %d: %s\n", reasons[reason], reason
        printf "tests: %d passed, %d failed, %d ignored, %d skipped\n", passed - skipped, failed, ignored, skipped
    }' "$log"
exit "$status"
