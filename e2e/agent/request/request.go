// Package request is what tests and the agent in the guest say to each other:
// one JSON object per line in each direction.
package request

// Window is how many requests with input a streamed command may have that it has
// not taken: the agent keeps no more than that, and always has room for a signal.
const Window = 64

// Chunk is the most input of one request, in bytes.
const Chunk = 4096

// Request asks for a command to be run, or for a file to be written or read.
type Request struct {
	ID int

	Path    string // the program; Argv[0] may be anything, Argv may be empty
	Argv    []string
	Env     []string
	Dir     string
	UID     int
	GID     int
	Groups  []int
	Data    []byte // standard input, or the contents for WritePath
	Timeout int    // seconds
	Signals []Signal

	// Hostile surroundings.
	Closed        []int             // descriptors to close
	Ignored       []int             // signals to ignore
	Blocked       []int             // signals to block
	Limits        map[string]uint64 // fsize, nofile, core, nproc, cpu
	Personality   uint32
	UserNamespace bool

	Break *Break // stop the command at a system call

	// A command that is watched while it runs: what it prints comes in answers
	// with Part set, and requests with To set go to it.
	Stream   bool
	Terminal bool // gives it a terminal of Rows and Columns as its controlling one
	Rows     int
	Columns  int

	To     int  // the ID of a running streamed command: it gets Data, Signal, or a terminal of another size
	EOF    bool // end of its standard input
	Signal int

	WritePath string // write Data there, with Mode and owner UID, GID
	Mode      uint32
	ReadPath  string // answer with the file in Stdout
}

// Break stops the command, and what it executes, at system calls of staprun and
// stapio that matter (the agent has the list), and acts at one of them. A call
// is described as "PROGRAM CALL TEXT", where TEXT is the path or the module name
// it is about: "staprun openat /etc/group".
type Break struct {
	List  bool   // write a line "at: ..." to standard error for each call
	Text  string // what the description must contain to be counted
	Nth   int    // act before the Nth of those, counted from 1; 0 for never
	Shell string // the act: a command of root's; "" kills the process with SIGKILL
	Hold  int    // milliseconds the call waits after the act while other threads go on
}

// Signal is sent to the command some milliseconds after it has first printed
// something to its standard output: how long it takes to get there depends on what
// else the machine does.
type Signal struct {
	Number int
	After  int
}

// Answer is the outcome of a Request with the same ID.
type Answer struct {
	ID       int
	Ready    bool // sent once, when the agent starts
	Part     bool // Stdout and Stderr are what a streamed command has just printed
	Taken    bool // with Part: the command has taken the Data of one request
	Status   int  // exit status, or 128 and the signal's number
	Stdout   []byte
	Stderr   []byte
	Millis   int64
	CPU      int64 // microseconds of processor time, with what it waited for
	TimedOut bool
	Error    string
}
