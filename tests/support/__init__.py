"""What tests and benchmarks stand on. It imports no test and no benchmark, and asserts no claim.

waiting, trio_waiting       until something happens: in real time, and in trio whatever its clock
repository                  where all this is
ports                       free ports, and who listens
sockets, blocking_sockets   TCP with trio, and without it
log_records                 events that were logged
cancellation                cancelling a task at each of its steps in turn
models                      stateful models of Hypothesis
lone_session                a session whose peer is the test
pair                        two sessions joined in memory
ends                        two endpoints joined by a real link
relay                       the relay in this process, and agents that are scripted
scripted_relay, agent       the opposite: a scripted relay, and parts of the agent at work with it
registry, enrolment         entries of a registry, and what an agent has of its own
processes                   any process: its output, its end
relay_commands              commands of relay-server in this process
programs, ssh               relay-server and relay-agent as installed; sshd, dropbear and ssh
house                       these together, at work
fixtures                    what several conftest.py files import
recorder                    what an agent says to its relay, to be said again
service_manager             what systemd does for a service
far_end, many_agents        processes that tests and benchmarks start: targets, a fleet of agents
openwrt_package, openwrt_python, debian_12
                            the agent as a router has it
lab                         network namespaces with a bad network between them
templates                   the sentences that a piece of our source can print
soak                        load, faults and gauges of the soak test
"""
