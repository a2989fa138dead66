# Completion of nelly for bash.
_nelly() {
  local typed=${COMP_WORDS[COMP_CWORD]} words=("${COMP_WORDS[@]:1:COMP_CWORD}") found
  # Colons and equal signs divide words for bash; an image or --flag=value is one of ours.
  if declare -F _get_comp_words_by_ref >/dev/null; then
    local cword
    _get_comp_words_by_ref -n := -c typed -w words -i cword
    words=("${words[@]:1:cword}")
  fi
  mapfile -t found < <("${COMP_WORDS[0]}" __complete -- "${words[@]}" 2>/dev/null)
  COMPREPLY=("${found[@]%%$'\t'*}")
  if declare -F __ltrim_colon_completions >/dev/null; then __ltrim_colon_completions "$typed"; fi
}
complete -o default -F _nelly nelly
