package relay

import (
	"encoding/binary"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"stapbox/core/transport"
)

// The answer to START and an interrupt are both there: the command of -c does not
// run, whichever of the two is looked at first.
func TestInterruptBeforeStartIsAnswered(t *testing.T) {
	for range 50 {
		read, write, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		c := &conversation{
			relay:  &relay{target: &target{release: write}},
			writes: make(chan transport.Message, 8),
		}
		signals, messages := make(chan os.Signal, 1), make(chan received, 1)
		signals <- unix.SIGINT
		messages <- received{message: transport.Message{Type: transport.Start, Payload: started(0)}}
		for len(signals)+len(messages) > 0 {
			c.step(signals, messages, nil)
		}
		if c.target.released || !c.started {
			t.Fatalf("the target was released: %v; START was answered: %v", c.target.released, c.started)
		}
		if m := <-c.writes; m.Type != transport.Exit {
			t.Fatalf("sent %v, want EXIT", m.Type)
		}
		read.Close()
		write.Close()
	}
}

// A third signal ends the conversation before the answer to START that came with it.
func TestNothingIsTakenAfterTheEnd(t *testing.T) {
	for range 50 {
		c := &conversation{relay: &relay{}, writes: make(chan transport.Message, 8), interrupts: forced - 1}
		signals, messages := make(chan os.Signal, 1), make(chan received, 1)
		signals <- unix.SIGINT
		messages <- received{message: transport.Message{Type: transport.Start, Payload: started(0)}}
		if c.step(signals, messages, nil); !c.over || c.started || c.result != aborted {
			t.Fatalf("over %v, started %v, result %v", c.over, c.started, c.result)
		}
	}
}

// started is the payload of the module's answer to START: pid and result.
func started(result int32) []byte {
	return binary.NativeEndian.AppendUint32(make([]byte, 4), uint32(result))
}
