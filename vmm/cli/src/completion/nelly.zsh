#compdef nelly
# Completion of nelly for zsh.
_nelly() {
  local -a lines words_so_far described
  local line
  words_so_far=("${(@Q)words[2,CURRENT]}")
  lines=("${(@f)$(${(Q)words[1]} __complete -- "${words_so_far[@]}" 2>/dev/null)}")
  for line in "${lines[@]}"; do
    [[ -n $line ]] || continue
    [[ $line == *$'\t'* ]] || line+=$'\t'
    # A colon divides word and description here.
    described+=("${${line%%$'\t'*}//:/\\:}:${line#*$'\t'}")
  done
  if (( ${#described} )); then
    _describe -t nelly nelly described
  else
    _files
  fi
}
if [ "$funcstack[1]" = _nelly ]; then _nelly "$@"; else compdef _nelly nelly; fi
