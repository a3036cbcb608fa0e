/*
 * Who may speak: a model of migration/arbiter-witness.c and decide.c for spin.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Two protected sides, one newcomer that would start the guest anew, one key at the
 * witness. Requests and answers get lost, anybody pauses at any point (that is what
 * interleaving is), sides die, keys with a lease expire. Assumed, as in the code: a lease
 * ends at the witness only after its owner's gate has shut by itself.
 *
 * Checked: never two voices (assert); a surviving side gets to speak once the witness can
 * be reached for good (ltl); nobody is stuck (no invalid end state).
 */
#define P 0
#define S 1
#define N 2

mtype = { ABSENT, ALONE, PROTECTED, FENCED, LOST, DEAD };

mtype key = PROTECTED;
byte revision = 1;
byte owner = P;

mtype state[3] = { PROTECTED, PROTECTED, LOST };
bool vouching = true;   /* the SVM confirms the PVM's output */
bool lease[3];          /* asked for, and not over as its owner counts, from the asking */
bool gate[3];           /* what the owner lets its guest's frames pass by */
bool lossy = true;      /* requests and answers may be lost */

#define speaks_p ((state[P] == PROTECTED && vouching) || (state[P] == ALONE && gate[P]))
#define speaks_s (state[S] == ALONE && gate[S])
#define speaks_n (state[N] == ALONE && gate[N])
#define BOUND 6         /* revisions: enough for each side to win, expire and return */

/* A swap of @from against "alone, me", answered or not. */
inline swap(me, from, absent)
{
    lease[me] = true;
    atomic {
        won = false; lost = false;
        if
        :: lossy -> skip                                  /* the request is lost */
        :: true ->
            if
            :: (absent && key == ABSENT) || (!absent && key == PROTECTED && revision == from) ->
                key = ALONE; owner = me; revision++; won = true
            :: else ->
                if
                :: key == ALONE && owner == me -> won = true  /* ours of before */
                :: else -> lost = true
                fi
            fi;
            if
            :: lossy -> won = false; lost = false         /* the answer is lost */
            :: true -> skip
            fi
        fi
    }
}

/* The owner's life: renewal, the gate's own clock, the way back after an expiry. */
inline serve(me)
{
    do
    :: state[me] == ALONE ->
        if
        :: atomic { key == ALONE && owner == me -> lease[me] = true };  /* keepalive */
            atomic { gate[me] = lease[me] }                             /* its answer */
        :: atomic { key == ABSENT && revision < BOUND -> gate[me] = false };
            swap(me, 0, true);
            if
            :: atomic { won -> gate[me] = lease[me] }
            :: lost -> state[me] = FENCED; gate[me] = false
            :: else -> skip
            fi
        :: atomic { key == ALONE && owner != me -> state[me] = FENCED; gate[me] = false }
        :: atomic { key == ABSENT && revision >= BOUND -> break }
        fi
    :: else -> break
    od
}

proctype Side(byte me)
{
    byte mine = 1;
    bool won, lost;

    if  /* protection ends here at any time: a cut link, a word, the peer's death */
    :: me == S -> vouching = false
    :: else -> skip
    fi;
    state[me] = LOST;
    do
    :: state[me] == LOST ->
        swap(me, mine, false);
        if
        :: won -> atomic { state[me] = ALONE; gate[me] = lease[me] }
        :: lost -> state[me] = FENCED
        :: else -> skip
        fi
    :: else -> break
    od;
    serve(me)
}

proctype Newcomer()
{
    bool won, lost;

    swap(N, 0, true);
    if
    :: won -> atomic { state[N] = ALONE; gate[N] = lease[N] }
    :: else -> state[N] = FENCED    /* refused to start */
    fi;
    serve(N)
}

/* Time passes: a lease and the gate that goes by it end together. */
proctype Clock()
{
end:
    do
    :: atomic { lease[P] -> lease[P] = false; gate[P] = false }
    :: atomic { lease[S] -> lease[S] = false; gate[S] = false }
    :: atomic { lease[N] -> lease[N] = false; gate[N] = false }
    od
}

/* A lease that is not renewed ends. */
proctype Expiry()
{
end:
    do
    :: atomic { key == ALONE && !lease[owner] && revision < BOUND -> key = ABSENT }
    od
}

/* The witness gets reachable for good at some time. */
proctype Repair()
{
    lossy = false
}

proctype Monitor()
{
end:
    do
    :: atomic { (speaks_p && speaks_s) || (speaks_p && speaks_n) || (speaks_s && speaks_n) ->
                assert(false) }
    od
}

init {
    atomic { run Side(P); run Side(S); run Newcomer(); run Expiry(); run Repair(); run Clock();
             run Monitor() }
}

/* No takeover is lost: in the end the key has an owner, or the run has used up its
 * revisions. */
ltl decided { <> (key != PROTECTED || revision >= BOUND) }
