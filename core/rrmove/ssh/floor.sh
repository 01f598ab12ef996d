# The shell floor: what runs at the far end of a lane where the node has no python3 for the agent.
# POSIX sh and POSIX tools (dash, bash, busybox); FloorLane streams it there without these comments.
#
# A request is a line, `OP ID BODY-LENGTH ARGUMENT...`, and then its body. Words are `=` and a text
# whose odd bytes are \0NNN, so that no name is ever split, globbed or run. An answer is fields that
# end in NUL (any name may stand in one): ID, state (`.` the last record, `+` more follow, `!` an
# error), how many fields, the body's length; the fields; the body. Strictly first come, first served.
# ID 0 is a beat, sent every second, so that silence means a dead connection.

LC_ALL=C
export LC_ALL
set -f
IFS=' '

has() { command -v "$1" >/dev/null 2>&1; }

# Tools, each tried before it is trusted. A reader of the stream must not take one byte more than it
# is asked for: the next request is behind it.
exact() { [ "$(printf abcdef | { "$@" 2>/dev/null >/dev/null; cat; })" = cdef ]; }
full='iflag=fullblock,count_bytes'
if exact head -c 2; then reader=head
elif exact dd bs=65536 $full count=2; then reader=dd
elif exact dd bs=1 count=2; then reader=bytes
else reader=none; fi
take() {
  case $reader in
    head) head -c "$1" ;;
    dd) dd bs=65536 $full count="$1" 2>/dev/null ;;
    *) dd bs=1 count="$1" 2>/dev/null ;;
  esac
}
# Both sides begin with all 256 byte values: where they do not get through, nothing else would.
proof=$(take 256 | { cksum 2>/dev/null || cat >/dev/null; })
if [ "${proof:-1313719201 256}" != '1313719201 256' ]; then
  printf '\nRRMOVE-NOT-CLEAN\n'
  exit
fi
every=
for a in 0 1 2 3; do for b in 0 1 2 3 4 5 6 7; do for c in 0 1 2 3 4 5 6 7; do every="$every\\0$a$b$c"; done; done; done
printf '\nRRMOVE-BYTES %b\0RRMOVE-READY\n' "$every"
# From a regular file one may read on where the last program stopped.
span() {
  case $reader in
    bytes)
      dd bs=65536 count=$(($1 / 65536)) 2>/dev/null
      dd bs=1 count=$(($1 % 65536)) 2>/dev/null
      ;;
    *) take "$1" ;;
  esac
}
sum=
for tool in sha256sum 'shasum -a 256' 'openssl dgst -sha256'; do
  case $(printf '' | $tool 2>/dev/null) in *e3b0c44298fc1c149afbf4c8996fb924*) sum=$tool; break ;; esac
done
if stat -L -c '%d:%i %s %b %B %f %.9Y' / >/dev/null 2>&1; then stats=yes; else stats=; fi
if timeout -s KILL 1 true >/dev/null 2>&1; then limits=yes; else limits=; fi
if setsid true >/dev/null 2>&1; then alone=setsid; else alone=; fi   # a group of its own, to be ended as one

# Answers

beat() {
  while sleep 1 </dev/null >/dev/null 2>&1 && kill -0 $$; do
    printf '%s\0' 0 + 0 0
  done </dev/null 2>/dev/null &
  beating=$!
}
# No beat may get into the middle of what takes more than one write.
hush() { kill "$beating" 2>/dev/null; wait "$beating" 2>/dev/null; }
trap 'kill "$beating" 2>/dev/null' EXIT
say() {
  state=$1
  shift
  long="$*"
  if [ ${#long} -gt 2000 ]; then
    hush
    printf '%s\0' "$id" "$state" $# 0 "$@"
    beat
  else
    printf '%s\0' "$id" "$state" $# 0 "$@"
  fi
}
tell() { say . "$@"; }
fail() { say ! "$@"; }   # a symbolic name, or a status and the tools' words

# Arguments. The dot keeps the line feeds at the end that a substitution would lose.
plain() {
  plain=$(printf '%b.' "${1#=}")
  plain=${plain%.}
}
# One line about a file, or the tool's complaint and its status.
# A part's first word has its journal's checksum too, which differs even where an inode comes again.
see() {
  look=$1
  if [ "$stats" ]; then by=: seen=$(stat -L -c '%d:%i %s %b %B %f %.9Y' "$1" 2>&1)
  else by=. seen=$(ls -Lldni "$1" 2>&1); fi || return
  case $look in *.rrmove-part) ;; *) return 0 ;; esac
  mark=$(cksum <"${look%part}journal") 2>/dev/null || mark=-
  while [ "${seen# }" != "$seen" ]; do seen=${seen# }; done
  seen="${seen%% *}$by${mark%% *} ${seen#* }"
}
identity() {
  case $stats in
    yes) ino=${seen%% *} rest=${seen#* } size=${rest%% *} ;;
    *)
      identity=$seen
      set -- $identity
      ino=0:$1 size=$6
      ;;
  esac
}
# The digest of a span that is there, a dash where the file is too short for it.
digest() {
  if [ $(($2 + $3)) -gt "$size" ]; then
    found=-
  else
    found=$({ dd bs=1 skip="$2" count=0 2>/dev/null; span "$3" 2>/dev/null; } <"$1" | $sum 2>&1)
    case $found in
      *[!0-9a-f]*=*) found=${found##*= } ;;
      *) found=${found%% *} ;;
    esac
  fi
}
# At most $1 seconds, whatever the node has to see to that. Input is fd 3: `&` alone would take it away.
within() {
  seconds=$1
  shift
  if [ "$limits" ]; then
    timeout -s KILL "$seconds" "$@" <&3
  else
    ( exec $alone "$@" ) <&3 &
    program=$!
    (
      sleep "$seconds" &
      nap=$!
      trap 'kill $nap; exit' TERM
      wait $nap
      kill -9 "${alone:+-}$program"
    ) </dev/null >/dev/null 2>&1 &
    clock=$!
    wait $program
    ended=$?
    kill $clock 2>/dev/null
    return $ended
  fi
}

# Operations; $1, $2, ... are the arguments as they came.

op_hello() {
  hush
  printf '%s\0' "$id" . 5 "$length" $$ "${SSH_CONNECTION-}" "$reader" "$sum" "$stats"
  take "$length"
  beat
}

# The path that a destination means, with symbolic links followed as far as it exists.
op_where() {
  plain "$1"; path=$plain
  plain "$2"; name=$plain
  home=${HOME-}
  [ "$home" ] || home=$(cd && pwd)
  case $path in
    '~' | '~/'*) path=$home${path#?} ;;
    '~'*)
      who=${path#?}
      who=${who%%/*}
      case $who in
        *[!A-Za-z0-9._-]*) ;;
        *)
          eval "theirs=~$who"   # nothing but letters, digits and ._- gets here
          case $theirs in /*) path=$theirs${path#?"$who"} ;; esac
          ;;
      esac
      ;;
  esac
  case $path in /*) ;; *) path=$home/$path ;; esac
  case $path in
    */) path=$path$name ;;
    *) if [ -d "$path" ]; then path=$path/$name; fi ;;
  esac
  rest=
  while [ "$path" ] && [ ! -e "$path" ] && [ ! -L "$path" ]; do
    rest=/${path##*/}$rest
    path=${path%/*}
  done
  [ "$path" ] || path=/
  if real=$(readlink -f "$path" 2>/dev/null && printf .); then
    path=${real%??}
  elif real=$(cd "$path" 2>/dev/null && pwd -P && printf .); then
    path=${real%??}
  elif real=$(cd "${path%/*}/" 2>/dev/null && pwd -P && printf .); then
    path=${real%??}/${path##*/}
  fi
  tell "$path$rest"
}

op_look() {
  plain "$1"
  if see "$plain"; then tell "$seen"; else fail 1 "$seen"; fi
}

op_room() {
  plain "$1"; path=$plain
  while [ ! -d "$path" ]; do path=${path%/*}; [ "$path" ] || path=/; done
  if [ -w "$path" ] && [ -x "$path" ]; then writable=yes; else writable=; fi
  tell "$path" "$writable" "$(df -Pk "$path" 2>/dev/null)"
}

op_make() {
  plain "$1"; path=$plain
  if words=$( { mkdir -p "${path%/*}/" && ( umask 077; : >>"$path" ); } 2>&1) && see "$path"; then
    tell "$seen" "$(df -Pk "$path" 2>/dev/null)"
  else
    fail $? "$words"
  fi
}

op_note() {
  plain "$1"; path=$plain
  plain "$2"
  # Another sender of the same content may have been quicker with the same words.
  words=$( { printf '%s' "$plain" >"$path~" && { mv -f "$path~" "$path" || [ -e "$path" ]; } } 2>&1) \
    && tell || fail $? "$words"
}

# dd without notrunc cuts or lengthens to where it was told to begin.
op_cut() {
  plain "$1"
  if [ ! -e "$plain" ]; then fail ENOENT 'the part file is gone'; return; fi
  words=$(dd bs=1 seek="$2" count=0 of="$plain" 2>&1 </dev/null) && tell || fail $? "$words"
}

# A first dd only moves the position that it shares with the cat behind it: right for any offset, and
# quick. What cannot be written is drained all the same, or the stream would get out of step.
# (By way of 3, because bash 5.2 forgets the 1 of `1<>` inside of a substitution.)
kept=
op_put() {
  if [ "$1" != "$part_word" ]; then plain "$1"; part=$plain part_word=$1; fi
  # Kept open, so that others see that the part is in use.
  if [ "$part" != "$kept" ] && [ -f "$part" ] && [ -w "$part" ]; then exec 9<>"$part"; kept=$part; fi
  if [ -d "$part" ]; then
    take "$length" >/dev/null
    fail EISDIR 'Is a directory'
  elif [ ! -e "$part" ]; then
    take "$length" >/dev/null
    fail ENOENT 'the part file is gone'
  elif words=$(
    take "$length" | {
      { dd bs=1 seek="$2" count=0 conv=notrunc </dev/null && cat; } 3<>"$part" >&3
      wrote=$?
      [ $wrote = 0 ] || cat >/dev/null
      exit $wrote
    } 2>&1
  ); then
    tell
  else
    fail $? "$words"
  fi
}

op_hash() {
  if [ ! "$sum" ]; then fail ENOSYS 'the node has no program for SHA-256'; return; fi
  plain "$1"; path=$plain
  shift
  if ! see "$path"; then fail 1 "$seen"; return; fi
  identity
  if ! words=$( { : <"$path"; } 2>&1); then fail 1 "$words"; return; fi
  say + "$seen"
  while [ $# -gt 1 ]; do
    digest "$path" "$1" "$2"
    say + "$found"
    shift 2
  done
  tell
}

op_get() {
  plain "$1"; path=$plain
  if ! see "$path"; then fail 1 "$seen"; return; fi
  if [ -d "$path" ]; then fail EISDIR 'Is a directory'; return; fi
  if ! words=$( { : <"$path"; } 2>&1); then fail 1 "$words"; return; fi
  identity
  count=$((size - $2))
  [ $count -gt 0 ] || count=0
  [ $count -lt "$3" ] || count=$3
  hush
  printf '%s\0' "$id" . 0 $count
  { dd bs=1 skip="$2" count=0 2>/dev/null; span $count; } <"$path"
  beat
}

op_commit() {
  exec 9>&-   # a target that is open for writing could not be executed
  kept=
  plain "$1"; path=$plain
  plain "$2"; journal=$plain
  plain "$3"; target=$plain
  mode=$6 moment=$7 stamp=$8
  if [ ! -e "$path" ]; then fail ENOENT 'the part file is gone'; return; fi
  see "$path" || { fail 1 "$seen"; return; }
  identity
  if [ "$ino $size" != "$5 $4" ]; then
    fail ESTALE 'the part file is another one than was verified'
    return
  fi
  if [ -d "$target" ]; then fail EISDIR 'Is a directory'; return; fi
  # Open before chmod takes the right to write. `sync` alone where dd knows no fsync: slower, not less.
  words=$( { {
    chmod "$mode" "$path" || exit
    touch -d "@$moment" "$path" 2>/dev/null || TZ=UTC0 touch -t "$stamp" "$path" 2>/dev/null
    words=$(dd if=/dev/null conv=notrunc,fsync 2>&1 >&3) || case $words in
      *onversion* | *nvalid* | *sage* | *nknown* | *'bad op'*) sync ;;
      *) printf '%s\n' "$words" >&2; exit 1 ;;
    esac
    mv -f "$path" "$target" || exit
    sync "${target%/*}/" 2>/dev/null || :
    rm -f "$journal"
    exit 0
  } 3<>"$path"; } 2>&1) && tell || fail $? "$words"
}

op_move() {
  plain "$1"; path=$plain
  plain "$2"
  words=$(mv -f "$path" "$plain" 2>&1) && tell || fail $? "$words"
}

op_remove() {
  plain "$1"
  [ -e "$plain" ] || { tell; return; }
  words=$(rm -f "$plain" 2>&1) && tell yes || fail $? "$words"
}

# The processes that have a file open: pid, and `ours` for agents and floors.
op_holders() {
  plain "$1"; path=$plain
  if [ ! -e "$path" ]; then tell; return; fi
  pids=
  if [ -d /proc/$$/fd ] && [ / -ef / ] 2>/dev/null; then
    set +f
    for held in /proc/[0-9]*/fd/*; do
      [ "$held" -ef "$path" ] || continue
      held=${held#/proc/}
      pids="$pids ${held%%/*}"
    done 2>/dev/null
    set -f
  elif has fuser; then
    pids=$(fuser "$path" 2>/dev/null)
  elif has lsof; then
    pids=$(lsof -t "$path" 2>/dev/null | tr '\n' ' ')
  fi
  last=
  for pid in $pids; do
    [ "$pid" != $$ ] && [ "$pid" != "$last" ] || continue
    last=$pid
    { marks=$(tr '\0' ' ' <"/proc/$pid/environ"); } 2>/dev/null || continue
    case " $marks" in *' RRMOVE_AGENT=1 '*) say + "$pid" ours ;; *) say + "$pid" foreign ;; esac
  done
  tell
}

op_signal() {
  name=$1
  shift
  for pid do kill -"$name" "$pid" 2>/dev/null && say + "$pid"; done
  tell
}

# One record for each old file: they are few, and a record must not be torn.
op_find() {
  plain "$1"; path=$plain
  case $path in
    '~') path=$HOME ;;
    '~/'*) path=$HOME/${path#??} ;;
    /*) ;;
    *) path=$HOME/$path ;;
  esac
  find "$path" -maxdepth "$2" -type f -name '.*' \
    \( -name '*.rrmove-part' -o -name '*.rrmove-journal' -o -name '*.rrmove-journal*~' -o -name '*.rrmove-bad' \) \
    -exec printf "$id"'\0+\0001\0000\0%s\0' {} \; 2>/dev/null
  tell
}

op_now() { tell "$(date +%s)"; }

op_ask() {
  plain "$1"
  said=$({ within 3 sh -c "$plain" 3</dev/null | take 65536; } 2>/dev/null; printf .)
  tell "${said%.}"
}

op_reach() {
  plain "$1"; host=$plain
  if has bash; then
    words=$(within "$3" bash -c 'exec 3<>"/dev/tcp/$0/$1"' "$host" "$2" 2>&1 3</dev/null)
    reached=$?
  elif has nc; then
    words=$(within "$3" nc -z -w "$3" "$host" "$2" 2>&1 3</dev/null)
    reached=$?
    case $words in
      *nvalid\ option* | *sage:*)   # busybox: it connects, and then runs something that ends at once
        words=$(within "$3" nc -w "$3" "$host" "$2" -e true 2>&1 3</dev/null)
        reached=$?
        ;;
    esac
  elif has curl; then
    words=$(within "$3" curl -sS --connect-timeout "$3" "telnet://$host:$2" 2>&1 3</dev/null)
    reached=$?
  else
    fail ENOSYS 'the node has no bash, nc or curl that could connect'
    return
  fi
  tell $reached "$words"
}

# Its output may hold anything and take its time: into a file, the only one that the floor ever makes
# outside of the landing.
op_run() {
  seconds=$1
  shift
  for word do
    plain "$word"
    set -- "$@" "$plain"
    shift
  done
  kept=$(umask 077; mktemp -d 2>/dev/null || { kept=${TMPDIR:-/tmp}/.rrmove-$$; mkdir "$kept" && echo "$kept"; })
  if [ ! -d "$kept" ] || ! command -v "$1" >/dev/null 2>&1; then
    take "$length" >/dev/null
    if [ -d "$kept" ]; then rmdir "$kept"; fail ENOENT 'No such file or directory'
    else fail EACCES 'the node has no place for temporary files'; fi
    return
  fi
  started=$(date +%s)
  take "$length" | {
    within "$seconds" "$@" 3<&0 >"$kept/out" 2>"$kept/errors"
    ended=$?
    cat >/dev/null
    exit $ended
  }
  ended=$? took=$(($(date +%s) - started))
  errors=$(tail -c 65536 "$kept/errors"; printf .)
  see "$kept/out"
  identity
  [ "$size" -lt 1048576 ] || size=1048576
  hush
  printf '%s\0' "$id" . 3 "$size" "$ended" "$took" "${errors%.}"
  span "$size" <"$kept/out"
  beat
  rm -rf "$kept"
}

beat
part_word=
while read -r op id length rest; do
  set -- $rest
  if has "op_$op"; then
    "op_$op" "$@"
  else
    take "$length" >/dev/null
    fail ENOSYS 'the shell floor does not know this operation'
  fi
done
