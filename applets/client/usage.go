package client

// usageText lists the options that do something here; stap(1) has the rest.
const usageText = `Usage: stap [options] FILE                    Run script in file.
   or: stap [options] -                       Run script on stdin.
   or: stap [options] -e SCRIPT               Run given script.

   or: stap [options] -l PROBE                List matching probe points.
   or: stap [options] -L PROBE                List matching probe points and their variables.

Options (in ~/.systemtap/rc and on command line):
   --         end of translator options, script options follow
   -h --help  show help
   -V --version
              show version
   -p NUM     stop after pass NUM 1-5, instead of 5
              (parse, elaborate, translate, compile, run)
   -v         add verbosity to all passes
   -k         keep temporary directory
   -u         unoptimized translation
   -w         suppress warnings
   -W         turn warnings into errors
   -g         guru mode
   -I DIR     look in DIR for additional .stp script files
   -E SCRIPT  run the SCRIPT in addition to the main script
   --compatible=VERSION
              suppress incompatible language changes after VERSION
   --check-version
              accepted; nothing depends on a version
   -s NUM     buffer size in megabytes
   -D NM=VAL  emit macro definition into generated C code
   -G VAR=VAL set global variable to value
   -r DIR     cross-compile to kernel with given build tree; or else
   -r RELEASE cross-compile to kernel /lib/modules/RELEASE/build
   -a ARCH    cross-compile to given architecture
   -m MODULE  set probe module name
   -o FILE    send script output to file, instead of stdout
   -x PID     sets target() to PID
   -t         collect probe timing information
   -T TIME    terminate the script after TIME seconds
   -q         say what of the tapset the script uses
   --suppress-handler-errors
              catch all runtime errors, quietly skip probe handlers
   --suppress-time-limits
              disable -DSTP_OVERLOAD, -DMAXACTION, and -DMAXTRYLOCK limits
   --translator=builtin|systemtap|auto
              who translates: this program (default), an installed SystemTap,
              or the second for what the first does not know
   --color[=WHEN]
              colour messages: always, auto or never
   --privilege=PRIVILEGE_LEVEL
              check the script for constructs not allowed at the given level:
              stapusr, stapsys or stapdev
   --unprivileged
              equivalent to --privilege=stapusr
   --use-server[=SERVER-SPEC]
              compile on a server: ADDRESS[:PORT], NAME[:PORT], the serial number
              of its certificate or sha256:HEX, its fingerprint
   --list-servers[=PROPERTIES]
              report on the status of the specified compile-servers:
              all,specified,online,trusted,signer,compatible
   --trust-servers[=TRUST-SPEC]
              add/revoke trust of specified compile-servers:
              ssl,signer,all-users,revoke,no-prompt
   --use-server-on-error[=yes/no]
              retry compilation using a compile server upon compilation error
   --sign-module
              sign the module for the kernel, with a machine owner key of yours
   --tmpdir=NAME
              specify name of temporary directory to be used
   --rlimit-as=NUM --rlimit-cpu=NUM --rlimit-nproc=NUM --rlimit-stack=NUM
   --rlimit-fsize=NUM
              limit the resources of the translator
`
