package doctor

import (
	"crypto/x509"
	"time"

	"stapbox/core/kmod"
	"stapbox/core/mok"
	"stapbox/core/trust"
)

// Host is what the checks know about a host and the user who asks. A test fills
// it in.
type Host struct {
	Now     time.Time
	Release string // of the running kernel
	Self    string // the executable that asks
	Tool    string // of packages: apt-get, dnf or ""

	UID         int
	GIDs        []int  // of the process
	Passwd      string // passwd(5)
	Group       string // group(5)
	Recorded    string // ids of groups that /etc/group does not have
	RecordedErr error  // why they do not count; nil when there is no file

	Staprun Program
	Stapio  Program
	Strange []Program // programs found under a name of ours that are another's
	Stale   []string  // setuid copies that an interrupted installation left

	NoNewPrivs  bool
	Seccomp     bool
	NoModules   bool // CAP_SYS_MODULE is not in the bounding set
	Namespace   bool // a user namespace other than the first
	ModulesFile bool // /proc/modules is there
	Disabled    bool // modules_disabled
	Config      map[string]bool
	ConfigFrom  string // the file of Config, "" if it was not found

	Enforced   bool   // the kernel loads signed modules only
	Lockdown   string // none, integrity, confidentiality, or "" where it is not known
	SecureBoot bool
	Enrolled   []*x509.Certificate // machine owner keys
	FIPS       bool

	ProcOptions string // of the mount of /proc
	Debugfs     bool

	Signers Store
	Peers   []Store // the user's own, then the host's
	Blessed Directory

	Server  string // why this host is a compile server, "" if it is none
	Headers error  // why modules cannot be built for the running kernel
	Lacking []string
	// OtherHeaders: there are headers of other kernels, which a server may be for.
	OtherHeaders bool
	Owned        []Identity // identities of servers
	Port         error      // binding the port of multicast DNS
	Links        int        // usable interfaces
	Servers      []Server   // remembered ones
	Online       bool       // the network was asked
	Found        int        // servers that answered
	Trusted      string     // one of them that is a trusted peer
	AskedErr     error

	Modules    []kmod.Loaded
	ModulesErr error
}

// Program is an installed file.
type Program struct {
	Path     string
	Missing  bool
	Link     bool // to the box
	Ours     bool
	Unread   bool   // this user may not read it, so Ours is not known
	Mode     uint32 // permission bits with setuid
	UID, GID int
	Names    int    // hard links
	NoSuid   string // the mount point, if it is mounted nosuid
	Other    bool   // not the bytes of Self; of an unread file, not as many
}

// Store is a trust store.
type Store struct {
	Dir  string
	Mine bool // the user's own
	Err  error
	None bool // it is not there
	*trust.Store
	NSS bool // there is an NSS database
}

// Directory is a directory's owner and mode.
type Directory struct {
	Path     string
	Missing  bool
	IsDir    bool
	Mode     uint32
	UID, GID int
}

// Identity is the certificate of a server on this host.
type Identity struct {
	Dir  string
	User string // whose it is, "" if it is the user's who asks
	Cert *x509.Certificate
	Err  error
}

// Server is a remembered compile server.
type Server struct {
	Address, Host string
	When          time.Time
}

// compilesHere reports whether the user's scripts need no server.
func (h *Host) compilesHere() bool {
	return h.loadsAll() && h.Headers == nil && len(h.Lacking) == 0
}

// enrolledOurs are the enrolled keys that may be a compile server's.
func (h *Host) enrolledOurs() []string {
	list := mok.Fingerprints(h.Enrolled)
	if len(list) == 1 && list[0] == mok.Missing {
		return nil
	}
	return list
}
