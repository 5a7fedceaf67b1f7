package tapset

import (
	"strings"
	"testing"

	"stapbox/core/script/parser"
)

func TestLibrary(t *testing.T) {
	files, err := Parse(parser.Options{Release: "6.1.0"})
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for _, f := range files {
		if !strings.HasPrefix(f.Source.Text, "// SPDX-License-Identifier: MIT\n") {
			t.Errorf("%s has no licence line", f.Source.Name)
		}
		for _, fn := range f.Functions {
			have[fn.Name] = true
			if !strings.Contains(f.Source.Text, "// "+fn.Name+":") {
				t.Errorf("%s is not described in %s", fn.Name, f.Source.Name)
			}
			if fn.C != nil && !strings.Contains(fn.C.Code, "stp_fn_"+fn.Name+"(c") {
				t.Errorf("%s does not call stp_fn_%s", fn.Name, fn.Name)
			}
		}
	}
	for _, name := range strings.Fields(`exit error warn log pid tid ppid uid euid gid egid execname cpu target module_name
		gettimeofday_s gettimeofday_ms gettimeofday_us gettimeofday_ns get_cycles strlen substr strtol isinstr
		str_replace tokenize stringat text_str text_strn randint ctime pp pn system tz_gmtoff tz_name tz_ctime
		ns_pid ns_tid ns_ppid ns_pgrp ns_sid ns_uid ns_euid ns_gid ns_egid remote_id remote_uri`) {
		if !have[name] {
			t.Errorf("function %s is missing", name)
		}
	}
}
