# Completion of nelly for fish.
function __nelly_complete
    set -l words (commandline -opc) (commandline -ct)
    $words[1] __complete -- $words[2..-1] 2>/dev/null
end
complete -c nelly -a '(__nelly_complete)'
