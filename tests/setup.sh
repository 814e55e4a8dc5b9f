# What the tests need from the machine. Sourced by tests/run.
#
# set_up BACKPORTS   installs what is missing, libvirt with it, and unpacks the other QEMU and the Linux guest's parts
# find_qemus         exports HIKYAKU_QEMU, HIKYAKU_QEMU_OTHER (and …_VERSION): runnable without more flags
#
# Nothing is downloaded but through apt-get, from the sources the machine is already configured with. The
# other QEMU of the pair is never installed: it lives in a private root, behind a wrapper.

readonly CACHE_DIR=${XDG_CACHE_HOME:-$HOME/.cache}/hikyaku-tests
# A version on either side of the capability that decides how a guest is held before it is stopped
# (switchover-ack, 8.1): the two ways of the daemon are both tested.
readonly QEMU_OLD_BELOW=8.1
# Never unpacked beside the machine's own: the dynamic loader is the machine's, and its library must match it.
readonly LEFT_TO_THE_MACHINE='libc6|libc-bin|libgcc-s1|gcc-[0-9]+-base'

as_root() {
    if ((EUID == 0)); then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        echo "tests/run: needs root (or sudo) for: $*" >&2
        return 1
    fi
}

set_up() { # BACKPORTS
    if ! command -v apt-get >/dev/null; then
        local missing
        missing=$(missing_packages)
        [[ -z $missing ]] && return 0
        echo "tests/run: no apt-get here; install by other means what Debian calls: $missing" >&2
        return 1
    fi
    local ok=0
    if [[ $1 == yes ]]; then add_backports || ok=1; fi
    install_missing || ok=1
    install_libvirt "$1" || skip "setup: no libvirt"
    mkdir -p "$CACHE_DIR" || return 1
    unpack_other_qemu || skip "setup: no second QEMU"
    unpack_other_libvirt || skip "setup: no second libvirt"
    unpack_linux || skip "setup: no Linux guest"
    return "$ok"
}

# The names of the Debian packages whose tools are not here.
missing_packages() {
    local out=()
    command -v qemu-system-x86_64 >/dev/null || out+=(qemu-system-x86)
    command -v ip >/dev/null || out+=(iproute2)
    command -v iperf3 >/dev/null || out+=(iperf3)
    compgen -G '/usr/lib/*/faketime/libfaketime.so.1' >/dev/null || out+=(libfaketime)
    command -v cc >/dev/null || out+=(gcc)
    command -v c++ >/dev/null || out+=(g++)
    [[ -e /usr/include/stdlib.h ]] || out+=(libc6-dev)
    echo "${out[*]}"
}

apt_lists_refreshed=no
refresh_apt_lists() {
    [[ $apt_lists_refreshed == yes ]] && return 0
    as_root apt-get -q update || return 1
    apt_lists_refreshed=yes
}

apt_install() { # APT-ARGUMENTS...
    refresh_apt_lists || return 1
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qy --no-install-recommends install "$@"
}

install_missing() {
    local missing
    missing=$(missing_packages)
    [[ -z $missing ]] && return 0
    # shellcheck disable=SC2086 # a list of names
    apt_install $missing
}

# Two of them are started by the tests, each in a host of its own; none of the machine's is.
install_libvirt() ( # BACKPORTS
    command -v libvirtd >/dev/null && command -v virsh >/dev/null && exit 0
    local release from=() policy=/usr/sbin/policy-rc.d made=no status
    if [[ $1 == yes ]] && release=$(release_name); then from=(--target-release "$release-backports"); fi
    if [[ ! -e $policy ]]; then
        made=yes
        # However this ends.
        trap "as_root rm -f '$policy'; exit 130" INT TERM
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null && as_root chmod 755 "$policy"
    fi
    apt_install "${from[@]}" libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients
    status=$?
    if [[ $made == yes ]]; then as_root rm -f "$policy"; fi
    exit "$status"
)

release_name() { (. /etc/os-release && [[ $ID == debian ]] && echo "$VERSION_CODENAME"); }

# The installed QEMU's Debian version, or what would be installed.
installed_qemu() { dpkg-query -W -f '${Version}' qemu-system-x86 2>/dev/null; }

add_backports() {
    local release
    if ! release=$(release_name) || [[ -z $release ]]; then
        echo "tests/run: --backports is for Debian; the machine's own QEMU is used" >&2
        return 0
    fi
    local have
    have=$(installed_qemu)
    if [[ -n $have ]] && dpkg --compare-versions "${have#*:}" ge 10; then return 0; fi
    refresh_apt_lists || return 1
    if ! apt-cache policy 2>/dev/null | grep -q "n=$release-backports"; then
        backports_source "$release" || return 1
        apt_lists_refreshed=no
    fi
    apt_install --target-release "$release-backports" qemu-system-x86
}

# Adds the backports of RELEASE on the archive, and with the key, that the machine already uses for RELEASE.
backports_source() { # RELEASE
    local file stanza= dir=/etc/apt/sources.list.d
    for file in "$dir"/*.sources; do
        [[ -e $file ]] || continue
        stanza=$(awk -v release="$1" -v RS= '
            /(^|\n)Enabled:[ \t]*no/ || !/(^|\n)Types:([ \t]*deb-src)*[ \t]*deb([ \t\n]|$)/ { next }
            match($0, /(^|\n)Suites:[^\n]*/) {
                n = split(substr($0, RSTART, RLENGTH), suite, /[ \t]+/)
                for (i = 2; i <= n; i++) if (suite[i] == release) {
                    sub(/Suites:[^\n]*/, "Suites: " release "-backports")
                    sub(/Types:[^\n]*/, "Types: deb")
                    print
                    exit
                }
            }' "$file")
        [[ -n $stanza ]] && break
    done
    if [[ -n $stanza ]]; then
        as_root tee "$dir/hikyaku-backports.sources" <<<"$stanza" >/dev/null
        return
    fi
    stanza=$(cat /etc/apt/sources.list "$dir"/*.list 2>/dev/null | awk -v release="$1" '
        $1 == "deb" { for (i = 2; i <= NF; i++) if ($i == release) { $i = release "-backports"; print; exit } }')
    if [[ -z $stanza ]]; then
        echo "tests/run: no archive of $1 is configured in apt: cannot tell where its backports are" >&2
        return 1
    fi
    as_root tee "$dir/hikyaku-backports.list" <<<"$stanza" >/dev/null
}

# The best version apt offers on the other side of QEMU_OLD_BELOW than the one installed; empty if none.
other_qemu_version() {
    local have want
    have=$(installed_qemu)
    want=ge
    dpkg --compare-versions "${have#*:}" ge "$QEMU_OLD_BELOW" && want=lt
    apt-cache madison qemu-system-x86 2>/dev/null | awk -F'|' '{ gsub(/ /, "", $2); print $2 }' | while read -r version; do
        dpkg --compare-versions "${version#*:}" "$want" "$QEMU_OLD_BELOW" && echo "$version"
    done | sort -V | tail -n 1
}

# Downloads packages (NAME=VERSION) and unpacks them below a directory.
unpack_packages() { # DIRECTORY PACKAGE...
    local root=$1 debs
    shift
    debs=$(mktemp -d "$CACHE_DIR/debs.XXXXXX") || return 1
    (cd "$debs" && apt-get -q -o APT::Sandbox::User=root download "$@") >/dev/null || { rm -rf "$debs"; return 1; }
    local deb status=0
    for deb in "$debs"/*.deb; do dpkg-deb -x "$deb" "$root" || status=1; done
    rm -rf "$debs"
    return "$status"
}

# What apt would install on an empty machine, less what is here in the same version. Resolved against the machine itself it may have
# no answer: what is installed can rule it out.
resolve() { # APT-ARGUMENTS...
    comm -23 \
        <(apt-get -s -o Dir::State::status=/dev/null --no-install-recommends install "$@" 2>/dev/null |
            sed -n 's/^Inst \([^ ]*\) \(\[[^]]*\] \)\{0,1\}(\([^ ]*\) .*/\1=\3/p' |
            grep -vE "^($LEFT_TO_THE_MACHINE)=" | sort) \
        <(dpkg-query -W -f '${Package}=${Version}\n' | sort)
}

# The oldest libvirt that apt offers, if it is older than the machine's: a private root, whose /usr the tests lay over the machine's.
unpack_other_libvirt() {
    local have version root staging names=()
    have=$(dpkg-query -W -f '${Version}' libvirt-daemon 2>/dev/null)
    version=$(apt-cache madison libvirt-daemon 2>/dev/null | awk -F'|' '{ gsub(/ /, "", $2); print $2 }' | sort -V | head -n 1)
    if [[ -z $version ]] || dpkg --compare-versions "$version" ge "${have:-0}"; then
        echo "tests/run: apt offers no libvirt older than ${have:-none}" >&2
        return 1
    fi
    root=$CACHE_DIR/libvirt-${version#*:}
    if [[ ! -x $root/usr/sbin/libvirtd ]]; then
        # Its own packages, and what is not here in any version.
        mapfile -t names < <(resolve "libvirt-daemon=$version" "libvirt-daemon-driver-qemu=$version" "libvirt-clients=$version" "libvirt0=$version" |
            awk -F= 'NR == FNR { here[$1]; next } /^libvirt/ || !($1 in here)' <(dpkg-query -W -f '${Package}\n') -)
        ((${#names[@]})) || return 1
        echo "unpacking libvirt $version into $root"
        staging=$(mktemp -d "$CACHE_DIR/root.XXXXXX") || return 1
        unpack_packages "$staging" "${names[@]}" || { rm -rf "$staging"; return 1; }
        rm -rf "$root"
        mv -T "$staging" "$root" && chmod 755 "$root" || return 1
    fi
    ln -sfn "${root##*/}" "$CACHE_DIR/libvirt-other"
}

unpack_other_qemu() {
    local version directory root staging package
    version=$(other_qemu_version)
    if [[ -z $version ]]; then
        refresh_apt_lists && version=$(other_qemu_version)
    fi
    if [[ -z $version ]]; then
        echo "tests/run: apt offers no second QEMU beside $(installed_qemu)" >&2
        return 1
    fi
    directory=qemu-${version#*:} # a path in LD_LIBRARY_PATH must not have a colon
    root=$CACHE_DIR/$directory
    if "$root/qemu" --version >/dev/null 2>&1; then
        ln -sfn "$directory" "$CACHE_DIR/qemu-other"
        return 0
    fi

    local wanted=("qemu-system-x86=$version") names=() from=()
    for package in qemu-system-common qemu-system-data; do
        # A binary rebuild (+bN) leaves the architecture-independent package at the source's version.
        local candidate
        for candidate in "$version" "${version%+b[0-9]*}"; do
            if apt-cache madison "$package" | grep -qF " $candidate |"; then wanted+=("$package=$candidate"); break; fi
        done
    done
    [[ $version == *~bpo* ]] && from=(--target-release "$(release_name)-backports")
    mapfile -t names < <(resolve "${from[@]}" "${wanted[@]}")
    if ((${#names[@]} == 0)); then
        echo "tests/run: apt cannot resolve QEMU $version" >&2
        return 1
    fi
    echo "unpacking QEMU $version and ${#names[@]} packages into $root"
    staging=$(mktemp -d "$CACHE_DIR/root.XXXXXX") || return 1
    unpack_packages "$staging" "${names[@]}" || { rm -rf "$staging"; return 1; }
    write_qemu_wrapper "$staging" "$root"
    rm -rf "$root"
    mv -T "$staging" "$root" && chmod 755 "$root" || return 1
    "$root/qemu" --version >/dev/null || return 1
    ln -sfn "$directory" "$CACHE_DIR/qemu-other"
}

# A private root's QEMU looks for modules and firmware in it first, in the machine's directories second.
write_qemu_wrapper() { # STAGING ROOT
    local libs
    libs=$(cd "$1" && find usr/lib lib -maxdepth 1 -type d -name '*-linux-gnu' 2>/dev/null | sed "s|^|$2/|" | paste -sd:)
    cat >"$1/qemu" <<WRAPPER
#!/bin/sh
root='$2'
export LD_LIBRARY_PATH="$libs"
export QEMU_MODULE_DIR="${libs%%:*}/qemu"
exec "\$root/usr/bin/qemu-system-x86_64" \\
    -L "\$root/usr/share/qemu" -L "\$root/usr/share/seabios" -L "\$root/usr/lib/ipxe/qemu" \\
    -L /usr/share/qemu -L /usr/share/seabios -L /usr/lib/ipxe/qemu "\$@"
WRAPPER
    chmod 755 "$1/qemu"
}

# Debian's cloud kernel and a static busybox: the parts of the Linux guest, see tests/src/linux.rs.
unpack_linux() {
    local linux=$CACHE_DIR/linux
    [[ -s $linux/vmlinuz && -x $linux/busybox ]] && return 0
    local image staging
    for attempt in 1 2; do
        image=$(apt-cache depends --no-recommends --no-suggests linux-image-cloud-amd64 2>/dev/null |
            sed -n 's/^ *Depends: \(linux-image-[^ ]*\)$/\1/p' | head -n 1)
        [[ -n $image ]] && break
        ((attempt == 1)) && { refresh_apt_lists || return 1; }
    done
    if [[ -z $image ]]; then
        echo "tests/run: apt knows no linux-image-cloud-amd64" >&2
        return 1
    fi
    echo "unpacking $image and busybox-static into $linux"
    staging=$(mktemp -d "$CACHE_DIR/linux.XXXXXX") || return 1
    unpack_packages "$staging/root" "$image" busybox-static || { rm -rf "$staging"; return 1; }
    mkdir "$staging/linux" &&
        cp "$staging"/root/boot/vmlinuz-* "$staging/linux/vmlinuz" &&
        find "$staging/root" -type f -path '*bin/busybox' -exec cp {} "$staging/linux/busybox" \; &&
        [[ -x $staging/linux/busybox ]] &&
        rm -rf "$linux" && mv -T "$staging/linux" "$linux"
    local status=$?
    rm -rf "$staging"
    return "$status"
}

qemu_version() { "$1" --version 2>/dev/null | sed -n 's/^QEMU emulator version \([^ ]*\).*/\1/p'; }

find_qemus() {
    local found
    if [[ -z ${HIKYAKU_QEMU:-} ]] && found=$(command -v qemu-system-x86_64); then export HIKYAKU_QEMU=$found; fi
    if [[ -z ${HIKYAKU_QEMU_OTHER:-} && -x $CACHE_DIR/qemu-other/qemu ]]; then
        HIKYAKU_QEMU_OTHER=$(readlink -f "$CACHE_DIR/qemu-other")/qemu
        export HIKYAKU_QEMU_OTHER
    fi
    if [[ -z ${HIKYAKU_LIBVIRT_OTHER:-} && -x $CACHE_DIR/libvirt-other/usr/sbin/libvirtd ]]; then
        HIKYAKU_LIBVIRT_OTHER=$(readlink -f "$CACHE_DIR/libvirt-other")
        export HIKYAKU_LIBVIRT_OTHER
    fi
    if [[ -z ${HIKYAKU_LINUX:-} && -s $CACHE_DIR/linux/vmlinuz ]]; then export HIKYAKU_LINUX=$CACHE_DIR/linux; fi
    HIKYAKU_QEMU_VERSION=$(qemu_version "${HIKYAKU_QEMU:-false}")
    HIKYAKU_QEMU_OTHER_VERSION=$(qemu_version "${HIKYAKU_QEMU_OTHER:-false}")
    export HIKYAKU_QEMU_VERSION HIKYAKU_QEMU_OTHER_VERSION
    echo "QEMU: ${HIKYAKU_QEMU_VERSION:-none} (${HIKYAKU_QEMU:-not found})"
    echo "the other QEMU: ${HIKYAKU_QEMU_OTHER_VERSION:-none} (${HIKYAKU_QEMU_OTHER:-not found})"
    echo "Linux guest: ${HIKYAKU_LINUX:-not found}"
}
