package lab

import (
	"reflect"
	"testing"
)

func TestParseBrowse(t *testing.T) {
	out := "+;eth0;IPv4;Systemtap\\032Compile\\032Server\\032on\\032vm\\032\\0352;_stap._tcp;local\n" +
		"=;eth0;IPv4;Systemtap\\032Compile\\032Server\\032on\\032vm\\032\\0352;_stap._tcp;local;vm.local;10.78.0.1;4711;\"version=5.6\" \"sysinfo=6.1 x86_64\"\n" +
		"=;eth0;IPv6;a\\059b;_stap._tcp;local;vm.local;fe80::1;1;\n"
	want := []Resolved{
		{"eth0", "IPv4", "Systemtap Compile Server on vm #2", "_stap._tcp", "local", "vm.local", "10.78.0.1", "4711", []string{"version=5.6", "sysinfo=6.1 x86_64"}},
	}
	got, err := parseBrowse(out)
	if err != nil || len(got) != 2 || !reflect.DeepEqual(got[:1], want) {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	if _, err := parseBrowse("=;eth0;IPv4\n"); err == nil {
		t.Error("a line without fields was read")
	}
}
