package script

import (
	"strings"
	"testing"
	"time"
)

// TestSmallGaps holds constructs that public scripts have against what SystemTap
// 4.8 and 5.6 do with them: accept, or refuse with these words. The name is that
// of the construct.
func TestSmallGaps(t *testing.T) {
	for _, tt := range []struct {
		construct, script string
		args              []string
		pass              int
		want              string // in what is printed; a message begins with its kind
	}{
		{"CONFIG_HZ == 250", `%( CONFIG_HZ == 250 %? probe begin { exit() } %: probe end { exit() } %)`, nil, 1, "probe begin{"},
		{"CONFIG_HZ != 250", `%( CONFIG_HZ != 250 %? probe begin { exit() } %: probe end { exit() } %)`, nil, 1, "probe end{"},
		{"CONFIG_NR_CPUS != CONFIG_HZ", `%( CONFIG_NR_CPUS != CONFIG_HZ %? probe begin { exit() } %: probe end { exit() } %)`, nil, 1, "probe begin{"},
		{"CONFIG_NR_CPUS >= CONFIG_HZ, as numbers", `%( CONFIG_NR_CPUS >= CONFIG_HZ %? probe begin { exit() } %: probe end { exit() } %)`, nil, 1, "probe end{"},
		{"a setting that is not there is 0", `%( CONFIG_NOPE < 1 %? probe begin { exit() } %: probe end { exit() } %)`, nil, 1, "probe begin{"},
		{"a setting in hexadecimal", `%( CONFIG_START == 0x1000 %? probe begin { exit() } %: probe end { exit() } %)`, nil, 1, "probe begin{"},
		{"a setting that is no number", `%( CONFIG_SMP == 1 %? probe begin { exit() } %)`, nil, 1, "parse error: Config option value not a number"},
		{"a setting with a pattern", `%( CONFIG_HZ == "2*" %? probe begin { exit() } %: probe end { exit() } %)`, nil, 1, "probe begin{"},
		{"the order of a setting and a string", `%( CONFIG_HZ < "3" %? probe begin { exit() } %)`, nil, 1, "parse error: expected '==' or '!='"},
		{"a setting and something else", `%( CONFIG_HZ == kernel_v %? probe begin { exit() } %)`, nil, 1, "parse error: expected string, number literal or other CONFIG_... as right side operand"},

		{"an argument that is not there, in a branch that is not taken", `probe begin { println(%( $# > 1 %? $2 %: 5 %)) }`, []string{"7"}, 1, "println(5);"},
		{"the same inside a macro", `@define f %( %( $# > 1 %? $2 %: 5 %) %) probe begin { println(@f) }`, []string{"7"}, 1, "println(5);"},
		{"the same inside a macro with parameters", `@define f(a) %( %( $# > 1 %? $2 %: @a %) %) probe begin { println(@f(3)) }`, []string{"7"}, 1, "println(3);"},
		{"the same inside a macro that is not used", `@define f %( $2 %) probe begin { println(7) }`, []string{"7"}, 1, "println(7);"},
		{"an argument that is not there, in a macro that is used", `@define f %( $2 %) probe begin { println(@f) }`, []string{"7"}, 1, "parse error: command line argument out of range [1-1]"},
		{"an argument in an argument", `probe begin { println($1) }`, []string{"$2", "x"}, 1, "parse error: invalid nested substitution of command line arguments"},
		{"an argument in a string argument", `probe begin { println(@1) }`, []string{"$2 @2", "x"}, 1, `println("$2 @2");`},

		{"a second %?", `probe begin { println(%( 1 == 1 %? 4 %? 3 %)) }`, nil, 1, "parse error: incomplete conditional - missing '%('"},
		{"a second %? behind what is not taken", `probe begin { println(%( 1 == 2 %? 4 %? 3 %)) }`, nil, 1, "parse error: incomplete conditional - missing '%('"},
		{"a second %? in the other branch", `probe begin { println(%( 1 == 2 %? 4 %: 5 %? 3 %)) }`, nil, 1, "parse error: incomplete conditional - missing '%('"},
		{"a second %:", `probe begin { println(%( 1 == 2 %? 4 %: 3 %: 2 %)) }`, nil, 1, "parse error: invalid conditional - duplicate '%:'"},
		{"a second %: in what is not taken", `probe begin { println(%( 1 == 1 %? 4 %: 3 %: 2 %)) }`, nil, 1, "parse error: invalid conditional - duplicate '%:'"},

		{"(expr)[i]", `probe begin { println((1)[1], ("a")[2], 5[3], (x->y)[2]->z) }`, nil, 1, `println((1)[1], ("a")[2], (5)[3], ((x)->y)[2]->z);`},
		{"(expr)[i] has no meaning here", `probe begin { x = 1 println((x)[1]) }`, nil, 2, "semantic error: dereference of a pointer is not supported by the built-in translator"},
		{"(expr)[i, j]", `probe begin { println((x)[1,2]) }`, nil, 1, "parse error: expected ']'"},
		{"$var[i]$", `probe begin { println($a->b[0]$) }`, nil, 1, `println($a->b[0]->$);`},
		{"@var()$", `probe begin { println(@var("a")$) }`, nil, 1, `println(@var("a")->$);`},
		{"@cast()$$", `probe begin { println(@cast(0, "t", "kernel")$$) }`, nil, 1, `println(@cast(0, "t", "kernel")->$$);`},
		{"f()$", `probe begin { println(f(1)$) }`, nil, 1, `println((f(1))->$);`},
		{"-> behind $", `probe begin { println($a$->b) }`, nil, 1, "parse error: -> and [ are not accepted for a pretty-printing variable"},

		{"if on each point", `global e = 1 probe timer.s(1) if (e), timer.s(2) { e = 0 println(e) }`, nil, 2, "timer.s(1) if (__global_e) /*  <- timer.s(1) if (__global_e),timer.s(2) */ \ntimer.s(2) /*"},
		{"if is for one point", `global e = 1 probe timer.s(1), timer.s(2) if (e) { e = 0 println(e) }`, nil, 2, "timer.s(1) /*  <- timer.s(1),timer.s(2) if (__global_e) */"},
		{"if in an alias and on its use", `global a = 1, b = 1 probe x = timer.s(1) if (a), begin { a = 0 println(a) } probe x if (b) { b = 0 println(b) }`, nil, 2, "timer.s(1) if ((__global_a) && (__global_b)) /*"},

		{"oneshot", `probe oneshot { println(1) }`, nil, 2, "begin /*  <- oneshot += begin /*  <- oneshot */  <- oneshot */"},
		{"init", `probe init { println(1) }`, nil, 2, "begin(-9223372036854775808) /*"},
		{"argc", `probe begin { println(argc) }`, []string{"a"}, 2, "argc:long"},
		{"argv", `probe begin { println(argv[1]) }`, []string{"a"}, 2, "argv[32]:string [long]"},
		{"argv_1", `probe begin { println(argv_1) }`, []string{"a"}, 2, "argv_1:string"},
		{"NULL", `probe begin { println(NULL) }`, nil, 2, "NULL:long"},
		{"NULL and argv are not there where nobody asks", `probe begin { println(1) }`, nil, 2, "# probes\nbegin /*  <- begin */ \n"},

		{"@choose_defined", `probe begin { println(@choose_defined($a, 1)) }`, nil, 2, "# probes\nbegin"},
		{"@choose_defined of what is there", `probe begin { x = "a" println(@choose_defined(x, 1)) }`, nil, 2, "x:string"},
		{"@choose_defined in itself", `probe begin { println(@choose_defined($a, @choose_defined($b, "c"))) }`, nil, 2, "# probes\nbegin"},
		{"@choose_defined without anything", `probe begin { println(@choose_defined($a, $b)) }`, nil, 2, "semantic error: context variable $b is not supported"},
		{"@defined", `probe begin { if (@defined($a)) println($a) else println(2) }`, nil, 2, "# probes\nbegin"},
		{"@defined in an expression", `probe begin { println(!@defined($a) && @defined(x), @defined($b) ? user_string($b) : "") x = 1 }`, nil, 2, "# probes\nbegin"},
		{"@defined in a function", `function f() { return @defined($a) ? $a : 3 } probe begin { println(f()) }`, nil, 2, "f:long ()"},
		{"@defined($value) of a file", `probe procfs("x").read { $value = sprint(@defined($value) ? "yes" : user_string($nosuch)) }`, nil, 2, "# probes\nprocfs"},
		{"@defined that debug information would answer", `probe begin { println(@defined(@cast(0, "t")->x)) }`, nil, 2, "semantic error: @defined is not supported"},
		{"a user's macro of a library's name", `@define choose_defined(a, b) %( 7 %) probe begin { println(@choose_defined($a, 1)) }`, nil, 1, "println(7);"},

		{"@errno", `probe begin { println(@errno) }`, nil, 2, "semantic error: @errno is not supported by the built-in translator"},
		{"@uderef", `probe begin { println(@uderef(4, 0)) }`, nil, 2, "semantic error: @uderef is not supported by the built-in translator"},
		{"@kderef without -g", `probe begin { println(@kderef(4, 0)) }`, nil, 1, "parse error: using @kderef operator not permitted; need stap -g"},
		{"@kregister without -g", `probe begin { println(@kregister(0)) }`, nil, 1, "parse error: using @kregister operator not permitted; need stap -g"},
		{"@prometheus_dump_array1", `global a probe begin { @prometheus_dump_array1(a, "x", "y") a[1] = 1 }`, nil, 2, "semantic error: macro @prometheus_dump_array1 is not supported"},

		{"%ld", `probe begin { printf("%ld\n", 5) }`, nil, 2, "# probes\nbegin"},
		{"%lu", `probe begin { printf("%lu\n", 5) }`, nil, 2, "# probes\nbegin"},
		{"%lx", `probe begin { printf("%lx\n", 5) }`, nil, 2, "# probes\nbegin"},
		{"%#lx", `probe begin { printf("%#lx\n", 5) }`, nil, 2, "# probes\nbegin"},
		{"%lld", `probe begin { printf("%lld\n", 5) }`, nil, 1, "parse error: invalid or missing conversion specifier"},
		{"%hd", `probe begin { printf("%hd\n", 5) }`, nil, 1, "parse error: invalid or missing conversion specifier"},
		{"%hhx", `probe begin { printf("%hhx\n", 5) }`, nil, 1, "parse error: invalid or missing conversion specifier"},
		{"%l at the end", `probe begin { printf("%l") }`, nil, 1, "parse error: invalid or missing conversion specifier"},

		{"sprint of a histogram", `global s probe begin { s <<< 1 h = sprint(@hist_log(s)) print(h) }`, nil, 2, "h:string"},
		{"an array of two million", `global a[2000000] probe begin { a[1] = 1 }`, nil, 1, "global a[2000000]"},
		{"an array of more than MAXMAPENTRIES may be", `global a[16777217] probe begin { a[1] = 1 }`, nil, 1, "parse error: array size out of range (1, 16777216)"},

		{"exit() as an operand", `global n probe timer.s(1) { (++n == 3) && exit() }`, nil, 2, "exit:unknown ()"},
		{"functions without value behind ?:", `probe timer.s(1) { pid() ? log("a") : exit() }`, nil, 2, "log:unknown (msg:string)"},
		{"exit() as a condition", `probe begin { if (exit()) println(1) }`, nil, 2, "exit:long ()"},
		{"exit() as a string", `probe begin { s = exit() . "x" println(s) }`, nil, 2, "exit:string ()"},
		{"exit() as anything", `probe begin { println(exit()) }`, nil, 2, "semantic error: unresolved type : identifier 'exit'"},

		{"an optional point of a class that is missing", `probe begin, kernel.function("f")? { exit() }`, nil, 2, `probe point kernel.function("f") is not supported by the built-in translator`},
		{"a sufficient point of a class that is missing", `probe kernel.function("f")!, begin { exit() }`, nil, 2, `probe point kernel.function("f") is not supported by the built-in translator`},
		{"an optional point of no class", `probe begin, nosuch? { exit() }`, nil, 2, "# probes\nbegin"},
		{"a pattern that stands for something missing, too", `probe timer.profile.* { println(1) }`, nil, 2, "probe point timer.profile.freq is not supported by the built-in translator"},
		{"a pattern for missing points", `probe t*.sendmsg { println(1) }`, nil, 2, "probe point tcp.sendmsg is not supported by the built-in translator"},
		{"a pattern for what is there", `probe timer.* { println(1) }`, nil, 2, "timer.profile /*  <- timer.* */"},
		{"an unused argument", `probe begin { exit() }`, []string{"a"}, 2, "WARNING: unused command line option $1/@1"},
	} {
		t.Run(tt.construct, func(t *testing.T) {
			o := opts
			o.Args = tt.args
			o.Config = map[string]string{"CONFIG_HZ": "250", "CONFIG_NR_CPUS": "64", "CONFIG_SMP": "y", "CONFIG_START": "0x1000"}
			got := say(tt.script, tt.pass, o)
			refused := strings.Contains(got, "error:")
			if !strings.Contains(got, tt.want) || refused != strings.Contains(tt.want+" ", "error:") && !strings.Contains(tt.want, "is not supported") {
				t.Errorf("%s\ngot\n%s\nwant %q", tt.script, got, tt.want)
			}
		})
	}
}

// -T ends the script whatever it declares; the others leave the text as it is.
func TestTimeout(t *testing.T) {
	o := opts
	o.Timeout = 1500 * time.Millisecond
	got := say(`function exit() { println("mine") } probe begin { exit() }`, 2, o)
	for _, want := range []string{"exit:unknown ()\nexit:unknown ()\n", "timer.ms(1500) /*  <- timer.ms(1500) */"} {
		if !strings.Contains(got, want) {
			t.Errorf("got\n%s\nwant %q", got, want)
		}
	}
	if got := say(`probe begin { exit() }`, 1, o); strings.Contains(got, "timer") {
		t.Errorf("-p1 shows\n%s", got)
	}
}

// An argument of more than 32 is in no variable, which is said.
func TestManyArguments(t *testing.T) {
	o := opts
	o.Args = make([]string, 40)
	for script, want := range map[string]string{
		`probe begin { println(argc) }`:     "WARNING: argv has the first 32 of 40 arguments",
		`probe begin { println(argv[32]) }`: "WARNING: argv has the first 32 of 40 arguments",
		`probe begin { println(argv_40) }`:  "semantic error: no variable argv_40: there are argv_1 to argv_32",
	} {
		if got := say(script, 2, o); !strings.Contains(got, want) {
			t.Errorf("%s: got\n%s\nwant %q", script, got, want)
		}
	}
}
