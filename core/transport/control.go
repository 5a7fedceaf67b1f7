// Package transport speaks with a loaded SystemTap module: control messages
// over its .cmd file and trace records from its trace files, in both
// generations that exist (loader-relay sections 6, 7 and 14).
//
// A control message is one read or one write, in native byte order, without a
// length field (the system call's count is the length):
//
//	0       4
//	+-------+----------------------
//	| type  | payload ...
//	+-------+----------------------
//
// Numbers of the types, and the payloads:
//
//	                 4.6-4.9  5.0-5.6  direction  payload
//	START                  0     0x50  to, from   i32 target pid, i32 result
//	EXIT                   1     0x51  to, from   -
//	OOB_DATA               2     0x52  from       text
//	SYSTEM                 3     0x53  from       command, NUL
//	TRANSPORT              4     0x54  from       -
//	BULK                   7     0x57  to         128 bytes, ignored
//	READY                  8     0x58  to         -
//	RELOCATION             9     0x59  to (root)  char[128] module, char[128] symbol, u64 address
//	REQUEST_EXIT          13     0x5d  from       -
//	TZINFO                14     0x5e  to (root)  i64 seconds west of UTC, char[64] name
//	PRIVILEGE_CREDENTIALS 15     0x5f  to (root)  i32 level mask
//	REMOTE_ID             16     0x60  to (root)  i32 index, char[128] URI
//	NAMESPACES_PID        18     0x62  to         i32 pid
//	MNT_NS_FDS            19     0x63  to         i32 descriptor of the target's, i32 of our own; from 5.1 on
//
// The two ranges do not meet, so that a READY of the wrong generation is
// answered with EINVAL and changes nothing: that is how Open tells them apart.
package transport

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Generation is the module's ABI generation.
type Generation int

// The generations, named for the upstream releases that introduced them.
const (
	Gen4 Generation = 4 // 4.6 to 4.9: types from 0, 8-byte record headers
	Gen5 Generation = 5 // 5.0 on, and our own modules: types from 0x50, 12-byte headers
)

// Type is the kind of a control message, in the numbering of 4.x.
type Type uint32

// The message types.
const (
	Start                Type = 0
	Exit                 Type = 1
	OOBData              Type = 2
	System               Type = 3
	Transport            Type = 4
	Bulk                 Type = 7
	Ready                Type = 8
	Relocation           Type = 9
	RealtimeData         Type = 12
	RequestExit          Type = 13
	TZInfo               Type = 14
	PrivilegeCredentials Type = 15
	RemoteID             Type = 16
	NamespacesPID        Type = 18
	MountNamespaceFDs    Type = 19
)

// String is the type's name in the protocol, or its number.
func (t Type) String() string {
	names := [...]string{
		Start: "START", Exit: "EXIT", OOBData: "OOB_DATA", System: "SYSTEM", Transport: "TRANSPORT",
		Bulk: "BULK", Ready: "READY", Relocation: "RELOCATION", RealtimeData: "REALTIME_DATA",
		RequestExit: "REQUEST_EXIT", TZInfo: "TZINFO", PrivilegeCredentials: "PRIVILEGE_CREDENTIALS",
		RemoteID: "REMOTE_ID", NamespacesPID: "NAMESPACES_PID", MountNamespaceFDs: "MNT_NS_FDS",
	}
	if t < Type(len(names)) && names[t] != "" {
		return names[t]
	}
	return fmt.Sprintf("type %d", uint32(t))
}

const gen5Base = 0x50

// MaxMessage is the room a read must offer: a message that does not fit is
// lost, and modules send at most 4 + 384 bytes.
const MaxMessage = 8192

// Message is one control message.
type Message struct {
	Type    Type
	Payload []byte
}

// Encode gives the bytes of one write.
func (g Generation) Encode(m Message) []byte {
	n := uint32(m.Type)
	if g == Gen5 {
		n += gen5Base
	}
	return append(binary.NativeEndian.AppendUint32(nil, n), m.Payload...)
}

// ErrShort is returned by Decode for fewer bytes than a type needs.
var ErrShort = errors.New("control message is shorter than its type field")

// Decode reads the bytes of one read. A number of the other generation gives a
// Type without a name.
func (g Generation) Decode(b []byte) (Message, error) {
	if len(b) < 4 {
		return Message{}, fmt.Errorf("%w (%d bytes)", ErrShort, len(b))
	}
	n := binary.NativeEndian.Uint32(b)
	if g == Gen5 {
		n -= gen5Base // numbers below wrap to huge ones, which no type has
	}
	return Message{Type(n), b[4:]}, nil
}

// StartMessage asks the module to register its probes for a target (0: none).
func StartMessage(target int32) Message {
	return Message{Start, binary.NativeEndian.AppendUint64(nil, uint64(uint32(target)))}
}

// StartResult is the result in a module's reply to START: 0 or a negative errno.
func StartResult(m Message) (int32, error) {
	if len(m.Payload) < 8 {
		return 0, fmt.Errorf("reply to START has %d bytes of payload, not 8", len(m.Payload))
	}
	return int32(binary.NativeEndian.Uint32(m.Payload[4:])), nil
}

// BulkMessage asks for bulk mode; a module in stream mode answers EINVAL.
func BulkMessage() Message { return Message{Bulk, make([]byte, 128)} }

// RelocationMessage tells the address of a kernel or module symbol or section.
// Names of 128 bytes or more do not fit and are refused.
func RelocationMessage(module, symbol string, address uint64) (Message, error) {
	var b [264]byte
	if len(module) > 127 || len(symbol) > 127 {
		return Message{}, fmt.Errorf("relocation %.32q of %.32q: name longer than 127 bytes", symbol, module)
	}
	copy(b[:128], module)
	copy(b[128:256], symbol)
	binary.NativeEndian.PutUint64(b[256:], address)
	return Message{Relocation, b[:]}, nil
}

// TZInfoMessage tells the local time zone: seconds west of UTC and a name, cut
// to 63 bytes.
func TZInfoMessage(secondsWest int64, name string) Message {
	var b [72]byte
	binary.NativeEndian.PutUint64(b[:], uint64(secondsWest))
	copy(b[8:71], name)
	return Message{TZInfo, b[:]}
}

// CredentialsMessage tells the levels the invoking user holds.
func CredentialsMessage(levels uint32) Message {
	return Message{PrivilegeCredentials, binary.NativeEndian.AppendUint32(nil, levels)}
}

// RemoteIDMessage tells the index and the URI of the remote session a module is
// part of; the URI is cut to 127 bytes.
func RemoteIDMessage(id int32, uri string) Message {
	var b [132]byte
	binary.NativeEndian.PutUint32(b[:], uint32(id))
	copy(b[4:131], uri)
	return Message{RemoteID, b[:]}
}

// NamespacesMessage names a process whose namespaces the script means.
func NamespacesMessage(pid int32) Message {
	return Message{NamespacesPID, binary.NativeEndian.AppendUint32(nil, uint32(pid))}
}

// MountNamespacesMessage passes descriptors of mount namespaces: the target's
// and the sender's own. They are numbers in the process that writes START.
func MountNamespacesMessage(target, own int32) Message {
	b := binary.NativeEndian.AppendUint32(nil, uint32(target))
	return Message{MountNamespaceFDs, binary.NativeEndian.AppendUint32(b, uint32(own))}
}
